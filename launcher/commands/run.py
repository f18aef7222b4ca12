"""`launcher run`: plan, write the run folder, start the ranks here, wait for them."""

from __future__ import annotations

from launcher.agent.launch import read_launch
from launcher.commands.guard import error_document, guarded, wants_json
from launcher.commands.invocation import Invocation
from launcher.errors import InputError
from launcher.faststart import overlapped_import, warm
from launcher.faststart.overlapped_import import HandOver, Order
from launcher.faststart.warm import WarmRun
from launcher.local.start import run_local
from launcher.planner import read_plan
from launcher.run.folder import RunFolder
from launcher.run.owner import Owner, release, this_process


def run(invocation: Invocation) -> int:
    """Run the job here; 0 done, 1 failed. Standard output is that of rank 0; a recipe's last line is JSON."""
    if invocation.multirun:
        raise InputError("`launcher run` runs one job: give one value for each key, or sweep with `launcher submit -m`")
    if _may_be_warm(invocation):
        code = warm.run_warm(WarmRun.of_this_process(invocation.overrides, invocation.rest))
        if code is not None:
            return code
    owner, as_json = this_process(), wants_json(invocation.overrides)
    if "dry_run=true" not in invocation.overrides and overlapped_import.possible():
        order: Order | None = overlapped_import.plan_in_child(
            lambda hand_over: guarded(lambda: _plan(invocation, owner, hand_over=hand_over), as_json=as_json), owner
        )
    else:
        order = _make_order(invocation, owner)
    return start_ranks(order) if order else 0


def start_ranks(order: Order, *, began: float | None = None) -> int:
    """Run a planned job in the folder that this process owns, and record there how it ended.

    `began`: when the user entered the command, if before this process started (CLOCK_MONOTONIC).
    """
    folder, ended = RunFolder(order.run_folder), "failed"
    try:
        plan = read_plan(folder.present_plan)
        code = run_local(
            plan,
            run_folder=order.run_folder,
            launch=read_launch(folder.launch).settings,
            planned_at=order.planned_at,
            began=began,
        )
        ended = "failed" if code else "done"
        if code and plan.options.output == "json":
            print(error_document("job_failed", [f"the job failed: its ranks' logs are in {folder.logs}"], code))
        return code
    except KeyboardInterrupt:
        ended = "interrupted"
        raise
    finally:
        release(folder, this_process(), ended=ended)


def _may_be_warm(invocation: Invocation) -> bool:
    """Return whether a warm server may take the run; it reads launch.warm itself if that is not on the command line."""
    unwanted = {"launch.warm=never", "dry_run=true"} & {*invocation.overrides}
    return not unwanted and warm.may_listen()


def _plan(invocation: Invocation, owner: Owner, *, hand_over: HandOver) -> int:
    order = _make_order(invocation, owner)
    return hand_over(order) if order else 0


def _make_order(invocation: Invocation, owner: Owner) -> Order | None:
    from launcher.commands.prepare import order  # imports Hydra, which the process that imports torch does not need

    return order(invocation, owner)
