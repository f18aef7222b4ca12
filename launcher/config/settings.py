"""The whole configuration as one frozen value: every group with the class that owns its keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

from launcher.agent.settings import LaunchSettings
from launcher.cluster import Cluster
from launcher.cluster.shape import DEGREES
from launcher.errors import InputError
from launcher.layout import LayoutRequest
from launcher.layout.engines import OWN
from launcher.layout.job import Job
from launcher.model import Model, Training
from launcher.planner.options import RecipeOptions, TrackingOptions, TrainOptions, recipe_class
from launcher.planner.record import PROGRAM_KEYS, RECIPE, Program, RunOptions
from launcher.schema import AUTO, defaults, key, read
from launcher.slurm.settings import SlurmSettings
from launcher.ssh.settings import SshSettings
from launcher.stacks.choice import StackKeys
from launcher.text import whole_number

MOST_JOBS = 1000
OFFLOAD = "offload_optimizer"
OTHER_NAMES = {f"train.{OFFLOAD}": f"layout.{OFFLOAD}"}  # of keys that have two
NIC_GBPS = 10  # assumed between nodes that the cluster file has no network for


def _sizes(value: Any) -> tuple[int, ...]:
    """Parse numbers of GPUs: a list, or text such as 8,16,32."""
    words = value.strip("[]").split(",") if isinstance(value, str) else value
    numbers = tuple(n for word in words or () if (n := whole_number(str(word).strip())))
    if not numbers or len(numbers) < len(words):
        raise ValueError("must be a list of numbers of GPUs: sizes=[8,16,32]")
    return numbers


def _mix(value: Any) -> dict[str, int]:
    """Parse models with how many jobs of each: gpt3_125m:5,gpt3_760m:2."""
    found: dict[str, int] = {}
    for word in str(value).strip("[]").split(","):
        name, _, count = word.strip().partition(":")
        number = whole_number(count) if count else 1
        if not name or not number or number > MOST_JOBS:
            raise ValueError(f"must be models and numbers of jobs, 1 to {MOST_JOBS}, as gpt3_125m:5,gpt3_760m:2")
        found[name] = found.get(name, 0) + number
    return found


def _slurm(launch: Mapping[str, Any]) -> type[SlurmSettings] | None:
    """Return Slurm's class if the group `launch` chooses Slurm."""
    return SlurmSettings if launch.get("place") == "slurm" else None


def _ssh(launch: Mapping[str, Any]) -> type[SshSettings] | None:
    """The hosts are named alike for agents that ssh starts, and for torchrun commands."""
    return SshSettings if launch.get("place") in ("ssh", "torchrun") else None


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """All keys. Two classes with the same key share its group."""

    cluster: Cluster = key(meaning="the hardware")
    model: Model = key(meaning="the transformer")
    stack: StackKeys = key(meaning="the software that trains")
    layout: LayoutRequest = key(meaning="the pinned part of the layout")
    training: Training = key(name="train", meaning="what speed, memory and the loss depend on")
    train: TrainOptions = key(name="train", meaning="how long and how to train")
    recipe: RecipeOptions = key(choose=recipe_class, meaning="the job that runs if script is null")
    launch: LaunchSettings = key(name="launch", meaning="how ranks are started and kept alive")
    slurm: SlurmSettings | None = key(name="launch", choose=_slurm, meaning="settings of a Slurm site")
    ssh: SshSettings | None = key(name="launch", choose=_ssh, meaning="which hosts, and how ssh gets there")
    tracking: TrackingOptions = key(meaning="where metrics go")

    output: str = key(
        "text", choices=("text", "json"), meaning="json: one JSON document on stdout, text for people on stderr"
    )
    config_dir: str | None = key(
        None,
        verbatim=True,
        example="site/configs",
        meaning="a folder of configuration files that come before all others",
    )
    run_dir: str | None = key(None, verbatim=True, meaning="the run's folder; null: runs/<recipe>-<UTC time>")
    script: str | None = key(None, verbatim=True, meaning="your own torchrun-compatible script, instead of the recipe")
    module: str | None = key(None, verbatim=True, example="pkg.train", meaning="your own module, run as by `python -m`")
    program: str | None = key(
        None, verbatim=True, example="./run.sh", meaning="your own program of any kind; each rank executes it"
    )
    plan: str | None = key(None, verbatim=True, example="best.json", meaning="an existing plan: its file or its folder")
    again: str | None = key(
        None, verbatim=True, example="last", meaning="for run and submit: repeat a run with its words and its plan"
    )
    save: str | None = key(
        None, verbatim=True, example="best.json", meaning="file to which `launcher plan` writes its best plan"
    )
    dry_run: bool = key(False, meaning="print what would run, start nothing")
    top: int = key(10, unit="plans", minimum=1, meaning="how many plans to show")
    why_not: str | None = key(
        None, verbatim=True, example="tp=4,pp=16", meaning="why this layout is not the first choice"
    )
    sizes: tuple[int, ...] | None = key(
        None, unit="GPUs", convert=_sizes, verbatim=True, example="8,16,32", meaning="compare numbers of GPUs"
    )
    mix: Mapping[str, int] | None = key(
        None, unit="jobs", convert=_mix, verbatim=True, example="gpt3_125m:5,gpt3_760m:2",
        meaning="how to cut GPUs by MIG for these models and numbers of jobs, each on one slice",
    )  # fmt: skip
    tokens: float | None = key(
        None, unit="tokens", above=0, example="300e9", meaning="training tokens, for GPU-hours and cost"
    )
    days: float | None = key(
        None, unit="days", above=0, example="14", meaning="with tokens: find the fewest GPUs that train them in time"
    )
    tokens_per_parameter: float | None = key(
        None, unit="1", above=0, example="20",
        meaning="with days and -m model=a,b: find the largest model that the cluster trains in time, each on so many "
        "tokens a parameter",
    )  # fmt: skip
    sort: str | None = key(
        None,
        choices=("time", "memory", "cost"),
        meaning="order of plans and of compared clusters; memory: the best one, and the best in less and less memory; "
        "null: plans by time, clusters as they were named",
    )
    to: str | None = key(None, example="torchtitan", meaning="the tool to export to")

    @property
    def program_kind(self) -> str:
        """The kind of program: the key of the user's own, or a recipe."""
        return next((name for name in PROGRAM_KEYS if getattr(self, name) is not None), RECIPE)

    @property
    def own_program(self) -> Program | None:
        """The user's own program, as named; None if the recipe runs."""
        kind = self.program_kind
        return None if kind == RECIPE else Program(kind=kind, target=getattr(self, kind))


@dataclass(frozen=True)
class Settings:
    """One command's input: the job, the requested layout, the value of every key, and the given data."""

    job: Job
    request: LayoutRequest
    options: Configuration
    given: Mapping[str, Any]
    notes: tuple[str, ...] = ()  # for the user, about the sources of these settings

    @cached_property
    def run_options(self) -> RunOptions:
        """The options that a plan of this job stores with its layout; the program as the user named it."""
        options = self.options
        return RunOptions(
            asked=options.layout,
            train=options.train,
            tracking=options.tracking,
            recipe=options.recipe,
            program=options.own_program,
            tokens=options.tokens,
            output=options.output,
        )

    @cached_property
    def config(self) -> dict[str, Any]:
        """The whole configuration as plain data, including defaults."""
        return with_defaults(self.given)


def settings_of(given: Mapping[str, Any], *, notes: tuple[str, ...] = ()) -> Settings:
    """Return typed values of a resolved configuration; raises InputError with everything that is wrong."""
    counted = _with_counts(_with_dtype(_with_offload(given)))
    options = read(Configuration, network := _with_network(counted))
    if network is not counted and options.plan is None:
        notes = (*notes, network_note(options.cluster.name))
    _check_one_program(options)
    engine = options.training.engine
    if options.stack.name != OWN and engine != "torch":
        raise InputError(
            f"train.engine={engine} is one of the launcher's own engines, but stack={options.stack.name} is different "
            "software: set train.engine=torch, or stack=launcher"
        )
    job = Job(options.cluster, options.model, options.training, options.stack.stack(engine=engine))
    return Settings(job, request_on(options.cluster, options.layout), options, given, notes)


def _with_offload(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """`train.offload_optimizer` is `layout.offload_optimizer`; raises InputError where the two differ."""
    train, layout = given.get("train") or {}, given.get("layout") or {}
    if not isinstance(train, Mapping) or not isinstance(layout, Mapping):
        return given
    here, there = train.get(OFFLOAD, AUTO), layout.get(OFFLOAD, AUTO)
    if not isinstance(here, bool) or here == there:  # auto, or refused where it is read
        return given
    if there != AUTO:
        raise InputError(
            f"train.{OFFLOAD}={_plain(here)} and layout.{OFFLOAD}={_plain(there)} are one key with two values: "
            "leave one of them out"
        )
    return merged(given, {"layout": {OFFLOAD: here}})


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _with_dtype(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """`train.dtype=auto` follows the cluster: CPUs train in fp32."""
    gpu: Any = given
    for group in ("cluster", "node", "gpu"):
        gpu = gpu.get(group) if isinstance(gpu, Mapping) else None
    train = given.get("train") or {}
    if not isinstance(train, Mapping) or train.get("dtype", AUTO) != AUTO or not isinstance(gpu, Mapping):
        return given
    return {**given, "train": {**train, "dtype": "fp32"}} if gpu.get("kind") == "cpu" else given


def _with_counts(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Apply `launch.nproc_per_node` and `launch.nnodes`: they replace the cluster's sizes for this job."""
    launch, cluster = given.get("launch") or {}, given.get("cluster") or {}
    if not isinstance(launch, Mapping) or not isinstance(cluster, Mapping):
        return given
    ranks, nodes = launch.get("nproc_per_node", AUTO), launch.get("nnodes", AUTO)
    of_node = {} if ranks in (AUTO, None) else {"node": {"num_gpus": ranks}}
    of_cluster = {} if nodes in (AUTO, None) else {"num_nodes": nodes}
    return merged(given, {"cluster": {**of_cluster, **of_node}}) if of_node or of_cluster else given


def _with_network(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Assume a network between the nodes of a user's own program, where the cluster file is of one machine; and where a
    plan is given, which has its own cluster.

    Only estimates depend on it, and without `model=` there is none.
    """
    cluster = given.get("cluster")
    node = cluster.get("node", {}) if isinstance(cluster, Mapping) else None
    if not isinstance(cluster, Mapping) or not isinstance(node, Mapping) or node.get("num_nics"):
        return given
    nodes, own = cluster.get("num_nodes", 1), any(given.get(name) is not None for name in (*PROGRAM_KEYS, "plan"))
    if not own or not isinstance(nodes, int) or nodes < 2:
        return given
    assumed = {"num_nics": 1, "nic_gbps": node.get("nic_gbps") or NIC_GBPS}
    return merged(given, {"cluster": {"fabric": "ethernet", "node": assumed}})


def network_note(name: str) -> str:
    """What is said where a network is assumed."""
    return f"{name} says nothing of a network: {NIC_GBPS} Gbit/s are assumed between nodes (cluster.node.nic_gbps)"


def _check_one_program(options: Configuration) -> None:
    given = [f"{name}={value}" for name in PROGRAM_KEYS if (value := getattr(options, name))]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} are given, but a run has one program: leave out all but one")


def request_on(cluster: Cluster, asked: LayoutRequest) -> LayoutRequest:
    """Return the request; if it pins no degree, use a default layout that fills the cluster."""
    degrees: dict[str, Any] = dict(cluster.default_layout)
    free = all(getattr(asked, degree) is None for degree in DEGREES)
    return replace(asked, **degrees) if free and degrees and prod(degrees.values()) == cluster.max_ranks else asked


def with_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain data with every key: as given, else its default."""
    return merged(defaults(Configuration, given), given)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested groups of `below`, overridden by the values of `above`."""
    found = dict(below)
    for name, value in above.items():
        inner = found.get(name)
        found[name] = merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return found
