"""The plan: the seam between planning and running, written once as plan.json and read by every rank.

A reader takes plans of its own version only: those of another one are refused with "plan again", for a plan takes less
than a second to make, and one that was moved to new rules would no longer be what its planner chose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
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

PLAN_VERSION = 2
MOST_NAMED = 5  # problems of a damaged plan that its message names
PROGRAM_KEYS = ("script", "module", "program")  # which of them is given says what of the user's own runs
RECIPE = "recipe"


@dataclass(frozen=True, kw_only=True)
class Program:
    """What of the user's own every rank runs. `kind`: one of PROGRAM_KEYS; `target`: a path, or a module's name."""

    kind: str
    target: str
    args: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a run reads in addition to its layout. None of it changes an estimate, but for `asked`.

    asked: what of the layout was pinned, for planning again on other nodes. program: None where the recipe runs.
    tokens: how long the training is to be, where that was said. output: where rank 0 says its numbers: `json` keeps
    standard output for the document.
    """

    asked: LayoutRequest = field(default_factory=LayoutRequest)
    train: TrainOptions = field(default_factory=TrainOptions)
    tracking: TrackingOptions = field(default_factory=TrackingOptions)
    recipe: RecipeOptions = field(default_factory=RecipeOptions)
    program: Program | None = None
    tokens: float | None = None
    output: str = "text"

    @property
    def kind(self) -> str:
        """What ranks run: one of PROGRAM_KEYS, or RECIPE."""
        return self.program.kind if self.program else RECIPE


@dataclass(frozen=True)
class Plan:
    """One layout of one job, chosen, with its estimate, the reasons, and the options of the run.

    `estimate` holds the public names (`step_time_s`, `memory`, …) as plain data. `hosts` names the host of each
    plan node once that is known, in plan order.
    """

    job: Job
    layout: Layout
    estimate: Mapping[str, Any]
    why: tuple[str, ...]
    options: RunOptions = field(default_factory=RunOptions)
    hosts: tuple[str, ...] = ()
    launcher: str = __version__  # that made it

    @property
    def kind(self) -> str:
        """What its ranks run: one of PROGRAM_KEYS, or RECIPE."""
        return self.options.kind

    @property
    def grid(self) -> RankGrid:
        return RankGrid.of(self.layout)

    @property
    def placement(self) -> Placement:
        return Placement(self.job.cluster, self.grid)

    def identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to go on: the model, the optimizer, and what orders the data."""
        model = {key: value for key, value in asdict(self.job.model).items() if key != "name"}
        training, train = self.job.training, self.options.train
        order = {"global_batch": training.global_batch, "seed": train.seed, "data": train.data}
        return {"model": model, "optimizer": training.optimizer, **order}

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in plan.json."""
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
            raise InputError(f"{name} has version {found}, and this launcher reads version {PLAN_VERSION}: plan again")
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
    """A plan as plan.json holds it. The recipe's options are of the class that its name says."""

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
    )
    job = Job(read.cluster, read.model, read.training, read.stack)
    return Plan(job, read.layout, read.estimate, read.why, options, read.hosts, read.launcher)


def _placement(plan: Plan) -> dict[str, Any]:
    """Where ranks are, for readers that are not this launcher: rank r is on node r // ranks_per_node, and there on the
    GPU that `gpus` has at r % ranks_per_node.
    """
    placement = plan.placement
    gpus = list(plan.job.cluster.node.gpu_order[: placement.ranks_per_node])
    return {"num_nodes": placement.num_nodes, "ranks_per_node": placement.ranks_per_node, "gpus": gpus}


def _misplaced(plan: Plan, said: Mapping[str, Any]) -> str | None:
    """The placement follows from layout and cluster; a plan that says another one was changed by hand."""
    return None if said == _placement(plan) else "its placement is not that of its layout"


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


def write_plan(plan: Plan, file: Path) -> Path:
    """Write a plan, complete or not at all; returns the file."""
    write_json(file, plan.to_dict())
    return file


def read_plan(file: Path) -> Plan:
    """Read a plan; raises InputError where that is impossible."""
    return Plan.from_dict(read_json(file, remedy="give a plan, or a run folder that has one, or plan again"), str(file))
