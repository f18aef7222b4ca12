"""The plan: the seam between planning and running, written once as plan.json and read by every rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from launcher.cluster import Cluster
from launcher.errors import InputError
from launcher.files import read_json, write_json
from launcher.layout import Layout, Placement, RankGrid
from launcher.layout.degrees import AXES
from launcher.layout.job import Job
from launcher.model import Model, Training
from launcher.schema import from_plain
from launcher.stacks import Stack
from launcher.text import printable

PLAN_VERSION = 1
MOST_NAMED = 5  # problems of a damaged plan that its message names
PROGRAM_KEYS = ("script", "module", "program")  # which of them is given says what of the user's own runs
RECIPE = "recipe"


@dataclass(frozen=True)
class Plan:
    """One layout of one job, chosen, with its estimate and the reasons.

    `estimate` holds the public names (`step_time_s`, `memory`, …) as plain data. `hosts` names the host of each
    plan node once that is known, in plan order. `config` is the whole resolved configuration: what a recipe
    reads its own settings from.
    """

    job: Job
    layout: Layout
    estimate: Mapping[str, Any]
    why: tuple[str, ...]
    config: Mapping[str, Any]
    hosts: tuple[str, ...] = ()
    version: int = PLAN_VERSION

    @property
    def kind(self) -> str:
        """What its ranks run: one of PROGRAM_KEYS, or a recipe of ours."""
        return program_kind(self.config)

    @property
    def grid(self) -> RankGrid:
        return RankGrid.of(self.layout)

    @property
    def placement(self) -> Placement:
        return Placement(self.job.cluster, self.grid)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in plan.json."""
        return {
            "version": self.version,
            "cluster": cluster_to_dict(self.job.cluster),
            "model": asdict(self.job.model),
            "training": asdict(self.job.training),
            "stack": asdict(self.job.stack),
            "layout": asdict(self.layout),
            "hosts": list(self.hosts),
            "estimate": dict(self.estimate),
            "why": list(self.why),
            "config": dict(self.config),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """The inverse of `to_dict`; raises InputError for another version or a broken document."""
        version = data.get("version")
        if version != PLAN_VERSION:
            found = printable(repr(version))
            raise InputError(
                f"this plan.json has version {found}; this launcher reads version {PLAN_VERSION}: plan again"
            )
        try:
            read = from_plain(_Stored, data)
        except InputError as error:
            named = "; ".join(error.problems[:MOST_NAMED])
            raise InputError(f"plan.json is not a plan of this launcher ({named}): plan again") from error
        job = Job(read.cluster, read.model, read.training, read.stack)
        plan = cls(job, read.layout, read.estimate, read.why, read.config, read.hosts)
        if problem := _unsound(plan):
            raise InputError(f"plan.json is not a plan of this launcher ({problem}): plan again")
        return plan


@dataclass(frozen=True)
class _Stored:
    """A plan as plan.json holds it."""

    version: int
    cluster: Cluster
    model: Model
    training: Training
    stack: Stack
    layout: Layout
    hosts: tuple[str, ...]
    estimate: Mapping[str, Any]
    why: tuple[str, ...]
    config: Mapping[str, Any]


def _unsound(plan: Plan) -> str | None:
    """What of a plan would make its own arithmetic fail, as no planner makes it."""
    layout, cluster = plan.layout, plan.job.cluster
    counts = (layout.tp, layout.pp, layout.dp, layout.cp, layout.ep, layout.virtual_stages, layout.micro_batch)
    if min(*counts, cluster.num_nodes, cluster.node.num_gpus, plan.job.training.global_batch) < 1:
        return "a degree or a count is below 1"
    if layout.world_size > cluster.num_gpus:
        return f"{layout.world_size} ranks on {cluster.num_gpus} GPUs"
    if sorted(layout.axis_order.split("-")) != sorted(AXES):
        return "axis_order does not name every axis once"
    if sorted(gpu for domain in cluster.node.domains for gpu in domain) != list(range(cluster.node.num_gpus)):
        return "the domains do not hold every GPU once"
    return None


def program_kind(config: Mapping[str, Any]) -> str:
    """Which of PROGRAM_KEYS a configuration gives, or a recipe of ours."""
    return next((key for key in PROGRAM_KEYS if config.get(key) is not None), RECIPE)


def write_plan(plan: Plan, file: Path) -> Path:
    """Write a plan, complete or not at all; returns the file."""
    write_json(file, plan.to_dict())
    return file


def read_plan(file: Path) -> Plan:
    """Read a plan; raises InputError where that is impossible."""
    return Plan.from_dict(read_json(file, remedy="give a plan, or a run folder that has one, or plan again"))


def cluster_to_dict(cluster: Cluster) -> dict[str, Any]:
    """Plain data, as plan.json has it."""
    node, gpu = cluster.node, cluster.node.gpu
    plain_gpu = {f.name: getattr(gpu, f.name) for f in fields(gpu)} | {
        "peak_flops": dict(gpu.peak_flops),
        "gemm_flops": dict(gpu.gemm_flops),
        "sustained_flops": dict(gpu.sustained_flops),
        "attention_flops": dict(gpu.attention_flops),
    }
    plain_node = {f.name: getattr(node, f.name) for f in fields(node)} | {
        "gpu": plain_gpu,
        "busbw_bytes_per_s": dict(node.busbw_bytes_per_s),
    }
    plain = {f.name: getattr(cluster, f.name) for f in fields(cluster)}
    return plain | {"node": plain_node, "default_layout": dict(cluster.default_layout)}


def cluster_from_dict(data: Mapping[str, Any]) -> Cluster:
    """The inverse of `cluster_to_dict`; raises InputError for other data."""
    return from_plain(Cluster, data, "cluster")
