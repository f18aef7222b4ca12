"""From a command line to a run folder with its plan: what `launcher run` and `launcher submit` share."""

from __future__ import annotations

import time
from pathlib import Path

from launcher import env
from launcher.agent.binding import node_binding
from launcher.agent.rank_env import chosen_variables
from launcher.commands.claim import claimed, may_claim
from launcher.commands.common import checked_settings, plan_to_run, work
from launcher.commands.invocation import Invocation
from launcher.config.compose import as_yaml
from launcher.config.settings import Settings
from launcher.console import say, tell
from launcher.errors import InputError
from launcher.faststart.overlapped_import import Order
from launcher.files import write_text
from launcher.model.token_file import check_fits, read_header
from launcher.planner import Plan, write_plan
from launcher.planner.record import RECIPE
from launcher.preflight.extensions import lock_findings
from launcher.run.folder import RunFolder
from launcher.run.owner import Owner


def order(invocation: Invocation, owner: Owner, settings: Settings | None = None) -> Order | None:
    """Plan a job for this machine, say so, and write its run folder for `owner`; None for a dry run.

    Raises InputError, and has then written nothing.
    """
    settings = settings or checked_settings(invocation.overrides)
    job = work(settings, invocation.rest)
    path = named_folder(settings)
    if path is not None:
        may_claim(path, owner)
    plan = plan_to_run(settings, invocation.overrides)
    if plan.placement.num_nodes > 1:
        raise InputError(
            f"this plan needs {plan.placement.num_nodes} nodes, and `launcher run` starts ranks on this machine: "
            "use `launcher submit`, or set cluster.num_nodes=1"
        )
    check_inputs(settings)
    say_plan(plan)
    if settings.options.dry_run:
        say_surroundings(plan, settings)
        say("dry run: nothing was started")
        return None
    check_devices(plan)
    tell_locks(plan)
    with claimed(path, owner, name=job.name) as folder:
        write_planned_run(folder, plan, settings)
    say(f"run folder: {folder.path}")
    return Order(folder.path, job.program, job.args, settings.options.launch, planned_at=time.monotonic())


def named_folder(settings: Settings) -> Path | None:
    """The run folder that the user named."""
    given = settings.options.run_dir
    return Path(given) if given else None


def check_devices(plan: Plan) -> None:
    """Where a plan for GPUs meets a machine without any: a script of the user's may do without, a recipe may not."""
    gpu = plan.job.cluster.node.gpu
    if gpu.kind != "cuda" or any(Path("/dev").glob("nvidia[0-9]*")):
        return
    found = f"the plan is for {plan.placement.ranks_per_node} × {gpu.name}, and this machine has no NVIDIA device"
    if plan.kind == RECIPE:
        raise InputError(f"{found}: choose cluster=cpu, or run where the GPUs are, as with `launcher submit`")
    tell(f"{found}: it is started without them")


def say_surroundings(plan: Plan, settings: Settings) -> None:
    """What each rank is given here, and why: its cores, and the variables that the user has not set."""
    if said := node_binding(plan, settings.options.launch.bind).describe():
        say(said)
    say_variables(plan)


def say_variables(plan: Plan) -> None:
    """The variables that ranks get and the user has not set, with the reason of each."""
    for variable in chosen_variables(plan, env.environment()):
        say(f"{variable.name}={variable.value}: {variable.why}")


def tell_locks(plan: Plan) -> None:
    """Say which compiled extensions the ranks would wait for in vain; only DeepSpeed and scripts may load any."""
    if plan.kind != RECIPE or plan.job.training.engine == "deepspeed":
        for finding in lock_findings(env.environment()):
            tell(finding.message)


def check_inputs(settings: Settings) -> None:
    """Raise InputError where files that the gpt recipe is to read are not here, or do not fit its model."""
    if settings.options.program_kind != RECIPE or settings.options.recipe.name != "gpt":
        return
    options, model = settings.options.train, settings.job.model
    if options.data is not None:
        path = Path(options.data)
        check_fits(read_header(path), path, vocab=model.vocab, seq_len=model.seq_len)
    if options.init_from is not None and not Path(options.init_from).is_dir():
        raise InputError(f"train.init_from={options.init_from} is not a folder: give a Hugging Face folder of weights")


def say_plan(plan: Plan) -> None:
    """The plan in a few lines, for people."""
    layout, cluster = plan.layout, plan.job.cluster.name
    if plan.estimate:
        say(f"plan: {plan.job.model.name} on {cluster} as {layout.brief()}")
    else:
        degrees = " ".join(
            f"{axis}{layout.degree(axis)}" for axis in ("tp", "pp", "cp", "dp") if layout.degree(axis) > 1
        )
        ranks = f"{layout.world_size} ranks of {plan.config[plan.kind]} on {cluster}"
        say(f"plan: {ranks}{degrees and f' as {degrees}'}")
    for reason in plan.why:
        say(f"  {reason}")


def write_planned_run(folder: RunFolder, plan: Plan, settings: Settings) -> None:
    """The plan and the configuration of a run, written before any process starts."""
    write_plan(plan, folder.plan)
    write_text(folder.config, as_yaml(settings.config))
