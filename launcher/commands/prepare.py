"""Shared by `run` and `submit`: from a command line to a run folder with everything that a start reads."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from launcher import env
from launcher.agent.binding import node_binding
from launcher.agent.command import check_starters
from launcher.agent.launch import Launch, read_launch, write_launch
from launcher.agent.rank_env import chosen_variables
from launcher.agent.settings import LaunchSettings
from launcher.commands.claim import claimed, may_claim
from launcher.commands.code_copy import from_copy
from launcher.commands.common import checked_settings, plan_to_run
from launcher.commands.given_plan import check_checkpoints, given_keys, merged, named_folder, read_given
from launcher.commands.invocation import Invocation
from launcher.commands.programs import found_program, short_name
from launcher.commands.unused_keys import PlannedStart, check_used
from launcher.config.compose import as_yaml
from launcher.config.settings import Settings
from launcher.console import notify, say
from launcher.errors import InputError
from launcher.faststart.overlapped_import import Order
from launcher.files import write_text
from launcher.model.token_file import check_fits, read_header
from launcher.planner import Plan, read_plan, write_plan
from launcher.planner.build import check_recipe_runs
from launcher.planner.deepspeed_config import full_config
from launcher.planner.options import OwnRecipeOptions
from launcher.planner.record import RECIPE
from launcher.preflight.extensions import lock_findings
from launcher.run.folder import RunFolder
from launcher.run.owner import Owner
from launcher.run.provenance import write_provenance

TRACKER_PACKAGES = {"wandb": "wandb", "tensorboard": "tensorboard", "mlflow": "mlflow-skinny"}
OLDEST_TORCH = (2, 11)  # of recipes, which .ci/oldest runs with it; scripts run with the extra `run`


@dataclass(frozen=True)
class PlannedRun:
    """A plan to run. `path`: the folder that the user named; `config`: the composed configuration, None if the plan
    existed before.
    """

    plan: Plan
    path: Path | None
    config: str | None

    @property
    def name(self) -> str:
        """The name that a new folder gets."""
        program = self.plan.options.program
        return short_name(program) if program else self.plan.options.recipe.name

    def write(self, folder: RunFolder, launch: Launch) -> Launch:
        """Write the plan, unless it existed before, and the options of this start; return how the run starts.

        With launch.snapshot it starts from a copy of the code, which this makes.
        """
        if not folder.plan.is_file():
            write_plan(self.plan, folder.plan)
        plan, launch = from_copy(self.plan, launch, folder)
        if read_plan(folder.plan) == plan:
            folder.plan_of_start.unlink(missing_ok=True)
        else:
            write_plan(plan, folder.plan_of_start)
        if self.config is not None:
            write_text(folder.config, self.config)
        return launch


def plan_run(settings: Settings, overrides: Sequence[str], args: Sequence[str]) -> PlannedRun:
    """Plan a job, or take an existing plan: that of `plan=`, or that of the named folder.

    Raises InputError if the existing plan contradicts the overrides, or if the folder has checkpoints of another job.
    """
    path, other_python = named_folder(settings), settings.options.launch.python is not None
    there = _plan_there(settings, path)
    if there is None:
        program = found_program(settings.run_options.program, args, other_python=other_python)
        plan = plan_to_run(settings, replace(settings.run_options, program=program), overrides)
        return PlannedRun(plan, path, as_yaml(settings.config))
    plan = read_given(there, settings, overrides)
    check_recipe_runs(plan.job, plan.options)
    program = found_program(plan.options.program, args, other_python=other_python)
    plan = replace(plan, options=replace(plan.options, program=program))
    if path is not None:
        check_checkpoints(plan, RunFolder(path))
    return PlannedRun(plan, path, None)


def _plan_there(settings: Settings, path: Path | None) -> str | None:
    """Return the existing plan; raises InputError if there are two."""
    given = settings.options.plan
    folder = RunFolder(path) if path is not None and RunFolder(path).plan.is_file() else None
    if given is None or folder is None:
        return given if folder is None else str(folder.path)
    other = read_given(given, settings, ())
    mine = read_plan(folder.plan)
    if (mine.job, mine.layout) != (other.job, other.layout):
        raise InputError(f"plan={given} differs from {folder.plan}: leave plan= out, or choose another run_dir")
    return given


def launch_settings(settings: Settings, overrides: Sequence[str], path: Path | None) -> LaunchSettings:
    """Return the launch settings: as given, otherwise as at the last start in this folder."""
    given = settings.options.launch
    before = _launched_before(path)
    if before is None or before.settings.place != given.place:
        return given
    return merged(before.settings, given, "launch", given_keys(overrides))


def _launched_before(path: Path | None) -> Launch | None:
    file = RunFolder(path).launch if path is not None else None
    return read_launch(file) if file is not None and file.is_file() else None


def order(invocation: Invocation, owner: Owner, settings: Settings | None = None) -> Order | None:
    """Plan a job for this machine, print the plan, and write its run folder for `owner`; None for a dry run.

    Writes nothing if it raises InputError.
    """
    settings = settings or checked_settings(invocation.overrides)
    path = named_folder(settings)
    if path is not None:
        may_claim(path, owner)
    run = plan_run(settings, invocation.overrides, invocation.rest)
    launch = Launch(settings=launch_settings(settings, invocation.overrides, path), work_dir=Path.cwd())
    if run.plan.placement.num_nodes > 1:
        other = "set cluster.num_nodes=1" if run.config is not None else "plan again with cluster.num_nodes=1"
        raise InputError(
            f"this plan needs {run.plan.placement.num_nodes} nodes, and `launcher run` starts ranks on this machine: "
            f"use `launcher submit`, or {other}"
        )
    if launch.settings.place == "slurm" and not env.get("SLURM_JOB_ID"):
        raise InputError(
            "launch=slurm runs in an allocation, and this shell has none: use `launcher submit` or `salloc … launcher "
            "run`, or leave launch=slurm out to run on this machine"
        )
    check_used(PlannedStart(plan=run.plan, launch=launch.settings), invocation.overrides)
    check_starters(launch.settings)
    check_inputs(run.plan)
    if launch.settings.python is None:
        check_tracker(run.plan)
    say_plan(run.plan)
    if settings.options.dry_run:
        say_surroundings(run.plan, launch.settings)
        say("dry run: nothing was started")
        return None
    check_devices(run.plan)
    if launch.settings.python is None:
        check_torch(run.plan)
    warn_of_locks(run.plan)
    return write_run(run, launch, invocation, owner)


def write_run(run: PlannedRun, launch: Launch, invocation: Invocation, owner: Owner) -> Order:
    """Write the folder of a run that starts now, wherever its ranks are; `owner` has it from then on."""
    with claimed(run.path, owner, name=run.name) as folder:
        write_launch(run.write(folder, launch), folder.launch)
        write_provenance(folder, invocation.overrides, invocation.rest)
    say(f"run folder: {folder.path}")
    return Order(folder.path.absolute(), planned_at=time.monotonic())


def check_devices(plan: Plan) -> None:
    """Check a plan for GPUs on a machine without any: warn for the user's script, raise InputError for a recipe."""
    gpu = plan.job.cluster.node.gpu
    if gpu.kind != "cuda" or any(Path("/dev").glob("nvidia[0-9]*")):
        return
    found = f"the plan is for {plan.placement.ranks_per_node} × {gpu.name}, and this machine has no NVIDIA device"
    if plan.kind == RECIPE:
        raise InputError(f"{found}: set cluster=cpu, or run on a node with GPUs, for example by `launcher submit`")
    notify(f"{found}: starting without them")


def say_surroundings(plan: Plan, launch: LaunchSettings) -> None:
    """Print what each rank gets here, and why: its cores, and the variables that the user has not set."""
    if said := node_binding(plan, launch.bind, num_ranks=plan.placement.ranks_on(0)).describe():
        say(said)
    say_variables(plan)


def say_variables(plan: Plan) -> None:
    """Print the variables that ranks get and that the user has not set, each with its reason."""
    for variable in chosen_variables(plan, env.environment()):
        say(f"{variable.name}={variable.value}: {variable.why}")


def warn_of_locks(plan: Plan) -> None:
    """Warn about stale locks of compiled extensions, which hang the ranks; only DeepSpeed and scripts load any."""
    if plan.kind != RECIPE or plan.job.training.engine == "deepspeed":
        for finding in lock_findings(env.environment()):
            notify(finding.message)


def check_tracker(plan: Plan) -> None:
    """Raise InputError if the tracker's package is not installed where its recipe is to run."""
    kind = plan.options.tracking.kind
    if plan.kind == RECIPE and kind in TRACKER_PACKAGES and find_spec(kind) is None:
        raise InputError(
            f"tracking={kind} needs the package {TRACKER_PACKAGES[kind]}, which is not installed: "
            f"pip install 'nvlink-launcher[{kind}]', or choose another tracking="
        )


def check_torch(plan: Plan) -> None:
    """Raise InputError if a recipe of ours is to run with a torch that is too old for it, or without any."""
    if plan.kind != RECIPE or isinstance(plan.options.recipe, OwnRecipeOptions):
        return
    needed = f"the recipe {plan.options.recipe.name} needs torch {'.'.join(map(str, OLDEST_TORCH))} or later"
    remedy = "pip install 'nvlink-launcher[train]'; a script of your own (script=) runs with torch 2.6 or later"
    try:
        found = version("torch")
    except PackageNotFoundError as error:
        raise InputError(f"{needed}, and none is installed: {remedy}") from error
    release = tuple(int(part) for part in re.findall(r"\d+", found)[:2])
    if release < OLDEST_TORCH:
        raise InputError(f"{needed}, and {found} is installed: {remedy}")


def check_ds_config(plan: Plan) -> None:
    """Raise InputError if train.ds_config cannot be used: with another engine, or against the plan."""
    options, engine = plan.options.train, plan.job.training.engine
    if options.ds_config is not None and engine != "deepspeed":
        raise InputError(f"train.ds_config is for train.engine=deepspeed, and the engine is {engine}: leave one out")
    full_config(plan, options)


def check_inputs(plan: Plan) -> None:
    """Raise InputError if the gpt recipe's input files are missing or do not fit its model."""
    if plan.kind != RECIPE or plan.options.recipe.name != "gpt":
        return
    options, model = plan.options.train, plan.job.model
    check_ds_config(plan)
    if options.data is not None:
        path = Path(options.data)
        check_fits(read_header(path), path, vocab=model.vocab, seq_len=model.seq_len)
    if options.init_from is not None and not Path(options.init_from).is_dir():
        raise InputError(f"train.init_from={options.init_from} is not a folder: give a Hugging Face folder of weights")


def say_plan(plan: Plan) -> None:
    """Print the plan in a few lines."""
    layout, cluster, program = plan.layout, plan.job.cluster.name, plan.options.program
    if plan.estimate:
        say(f"plan: {plan.job.model.name} on {cluster} as {layout.brief()}")
    else:
        degrees = " ".join(
            f"{axis}{layout.degree(axis)}" for axis in ("tp", "pp", "cp", "dp") if layout.degree(axis) > 1
        )
        what = program.target if program else f"the recipe {plan.options.recipe.name}"
        ranks = f"{layout.world_size} rank{'s' if layout.world_size > 1 else ''} of {what} on {cluster}"
        say(f"plan: {ranks}{degrees and f' as {degrees}'}")
    for reason in plan.why:
        say(f"  {reason}")
