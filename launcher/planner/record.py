"""The plan: the interface between planning and running, written once as plan.json and read by every rank.

A reader accepts only plans of its own version and refuses others with "plan again": planning takes less than a second,
and a migrated plan would no longer be what its planner chose. Plans with other keys have another version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from math import inf
from pathlib import Path
from typing import Any

from launcher import __version__
from launcher.cluster import Cluster
from launcher.errors import InputError
from launcher.files import read_json, write_json
from launcher.layout import Layout, LayoutRequest, Placement, RankGrid
from launcher.layout.degrees import AXES
from launcher.layout.job import Job
from launcher.model import Model, Training
from launcher.planner.options import RecipeOptions, TrackingOptions, TrainOptions, recipe_class
from launcher.schema import from_plain, to_plain
from launcher.stacks import Stack
from launcher.text import printable
from launcher.units import format_seconds

PLAN_VERSION = 6
MOST_NAMED = 5  # problems of a damaged plan, listed in the message
PROGRAM_KEYS = ("script", "module", "program")  # the key that is given determines what runs
RECIPE = "recipe"


@dataclass(frozen=True, kw_only=True)
class Program:
    """The user's program that every rank runs. `kind`: one of PROGRAM_KEYS; `target`: a path or a module name."""

    kind: str
    target: str
    args: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of a run in addition to its layout. Only `asked` affects an estimate.

    asked: the pinned part of the layout, for planning again on other nodes. program: None if the recipe runs.
    tokens: the length of the training, if given. node_ranks: how many ranks each node has, where they have different
    numbers. output: where rank 0 prints its numbers: `json` reserves standard
    output for the document.
    """

    asked: LayoutRequest = field(default_factory=LayoutRequest)
    train: TrainOptions = field(default_factory=TrainOptions)
    tracking: TrackingOptions = field(default_factory=TrackingOptions)
    recipe: RecipeOptions = field(default_factory=RecipeOptions)
    program: Program | None = None
    tokens: float | None = None
    output: str = "text"
    node_ranks: tuple[int, ...] = ()

    @property
    def kind(self) -> str:
        """The kind of program: one of PROGRAM_KEYS, or RECIPE."""
        return self.program.kind if self.program else RECIPE


@dataclass(frozen=True)
class Plan:
    """The chosen layout of a job, with its estimate, the reasons, and the options of the run.

    `estimate` has the public names (`step_time_s`, `memory`, …) as plain data. `hosts` has the host of each plan node
    once it is known, in plan order.
    """

    job: Job
    layout: Layout
    estimate: Mapping[str, Any]
    why: tuple[str, ...]
    options: RunOptions = field(default_factory=RunOptions)
    hosts: tuple[str, ...] = ()
    launcher: str = __version__  # version that made the plan

    def __repr__(self) -> str:
        step = f", {format_seconds(self.estimate['step_time_s'])} a step" if self.estimate else ""
        return f"<Plan {self.job.model.name} on {self.job.cluster.name}: {self.layout.brief()}{step}>"

    @property
    def kind(self) -> str:
        """The kind of program of its ranks: one of PROGRAM_KEYS, or RECIPE."""
        return self.options.kind

    @property
    def grid(self) -> RankGrid:
        return RankGrid.of(self.layout)

    @property
    def placement(self) -> Placement:
        return Placement(self.job.cluster, self.grid, self.options.node_ranks)

    def identity(self) -> dict[str, Any]:
        """Return what must be equal to resume from a checkpoint: model, optimizer, and order of the data."""
        model = {key: value for key, value in asdict(self.job.model).items() if key != "name"}
        training, train = self.job.training, self.options.train
        order = {"global_batch": training.global_batch, "seed": train.seed, "data": train.data}
        return {"model": model, "optimizer": training.optimizer, **order}

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as in plan.json."""
        job = {"cluster": self.job.cluster, "model": self.job.model, "training": self.job.training}
        found = {"version": PLAN_VERSION, "launcher": self.launcher, **job, "stack": self.job.stack}
        found |= {"layout": self.layout, "hosts": self.hosts, "placement": _placement(self)}
        found |= {"estimate": self.estimate, "why": self.why}
        options = {f.name: getattr(self.options, f.name) for f in fields(self.options)}
        return {name: to_plain(value) for name, value in (found | options).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], name: str = "the plan") -> Plan:
        """The inverse of `to_dict`; raises InputError for another version or a broken document, called `name`."""
        if (version := data.get("version")) != PLAN_VERSION:
            found = printable(repr(version))
            raise InputError(f"{name} has version {found}, but this launcher reads version {PLAN_VERSION}: plan again")
        try:
            plan = _from_stored(data)
        except InputError as error:
            named = "; ".join(error.problems[:MOST_NAMED])
            raise InputError(f"{name} is not a plan of this launcher ({named}): plan again") from error
        if problem := _unsound(plan) or _misplaced(plan, data["placement"]):
            raise InputError(f"{name} is not a plan of this launcher ({problem}): plan again")
        return plan


@dataclass(frozen=True)
class _Stored:
    """A plan as stored in plan.json. The recipe's name determines the class of its options."""

    version: int
    launcher: str
    cluster: Cluster
    model: Model
    training: Training
    stack: Stack
    layout: Layout
    hosts: tuple[str, ...]
    placement: Mapping[str, Any]
    estimate: Mapping[str, Any]
    why: tuple[str, ...]
    asked: LayoutRequest
    train: TrainOptions
    tracking: TrackingOptions
    recipe: Mapping[str, Any]
    program: Program | None
    tokens: float | None
    output: str
    node_ranks: tuple[int, ...]


def _from_stored(data: Mapping[str, Any]) -> Plan:
    read = from_plain(_Stored, data)
    try:
        recipe = from_plain(recipe_class(read.recipe), read.recipe, RECIPE)
    except ValueError as error:
        raise InputError(str(error)) from error
    options = RunOptions(
        asked=read.asked,
        train=read.train,
        tracking=read.tracking,
        recipe=recipe,
        program=read.program,
        tokens=read.tokens,
        output=read.output,
        node_ranks=read.node_ranks,
    )
    job = Job(read.cluster, read.model, read.training, read.stack)
    return Plan(job, read.layout, read.estimate, read.why, options, read.hosts, read.launcher)


def _placement(plan: Plan) -> dict[str, Any]:
    """Return the placement of ranks, for readers other than this launcher: rank r is on node r // ranks_per_node, on
    GPU gpus[r % ranks_per_node]. Where nodes have different numbers, ranks_per_node is the list of them.
    """
    placement = plan.placement
    gpus = list(plan.job.cluster.node.gpu_order[: placement.ranks_per_node])
    each = list(placement.node_ranks) or placement.ranks_per_node
    return {"num_nodes": placement.num_nodes, "ranks_per_node": each, "gpus": gpus}


def _misplaced(plan: Plan, said: Mapping[str, Any]) -> str | None:
    """Check the placement, which follows from layout and cluster: a different one was edited by hand."""
    return None if said == _placement(plan) else "its placement does not match its layout"


def _unsound(plan: Plan) -> str | None:
    """Return a problem that would break the plan's arithmetic; no planner writes such plans."""
    layout, cluster = plan.layout, plan.job.cluster
    counts = (layout.tp, layout.pp, layout.dp, layout.cp, layout.ep, layout.virtual_stages, layout.micro_batch)
    if min(*counts, cluster.num_nodes, cluster.node.num_gpus, plan.job.training.global_batch) < 1:
        return "a degree or a count is below 1"
    if problem := _uneven(plan):
        return problem
    if layout.world_size > cluster.num_gpus:
        return f"{layout.world_size} ranks on {cluster.num_gpus} GPUs"
    if sorted(layout.axis_order.split("-")) != sorted(AXES):
        return "axis_order does not name every axis once"
    return next(iter(cluster.node.problems()), None)


def _uneven(plan: Plan) -> str | None:
    """Return a problem of node_ranks, on which only plain data parallelism is placed."""
    layout, each = plan.layout, plan.options.node_ranks
    if not each:
        return None
    if sum(each) != layout.world_size or not all(0 < ranks <= plan.job.cluster.node.num_gpus for ranks in each):
        return f"node_ranks is {list(each)} for {layout.world_size} ranks"
    return None if layout.dp == layout.world_size else "node_ranks is for data parallelism alone"


def write_plan(plan: Plan, file: Path) -> Path:
    """Write a plan atomically; return the file."""
    write_json(file, plan.to_dict())
    return file


def read_plan(file: Path) -> Plan:
    """Read a plan; raises InputError if that is impossible."""
    return Plan.from_dict(read_json(file, remedy="give a plan or a run folder with one, or plan again"), str(file))


def check_estimate(plan: Plan, name: str) -> None:
    """Raise InputError unless the estimate is whole, or there is none: for what shows it. Ranks do not read it."""
    from launcher.cost.estimate import Estimate  # which a rank need not import

    if not plan.estimate:
        return
    try:
        read = from_plain(Estimate, plan.estimate, "estimate")
    except InputError as error:
        named = "; ".join(error.problems[:MOST_NAMED])
        raise InputError(f"{name} is not a plan of this launcher ({named}): plan again") from error
    sizes = (read.step_time_s, *read.step_time_interval_s, read.memory_bytes_per_gpu, read.usable_memory_bytes)
    if not all(0 < size < inf for size in sizes) or not 0 <= read.worst_stage < plan.layout.pp:
        raise InputError(f"{name} is not a plan of this launcher (its estimate is of no run): plan again")
