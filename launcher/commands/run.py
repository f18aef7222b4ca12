"""`launcher run`: plan, write the run folder, start the ranks here, wait for them."""

from __future__ import annotations

from launcher.commands.guard import guarded
from launcher.commands.invocation import Invocation
from launcher.errors import InputError
from launcher.faststart import overlapped_import as early
from launcher.faststart import warm
from launcher.faststart.overlapped_import import HandOver, Order
from launcher.faststart.warm import WarmRun
from launcher.local.start import run_local
from launcher.planner import read_plan
from launcher.run.folder import RunFolder


def run(invocation: Invocation) -> int:
    """Run the job here; 0 done, 1 failed. Standard output carries rank 0's, whose last line is JSON for a recipe."""
    if invocation.multirun:
        raise InputError("`launcher run` runs one job: give one value for each key, or sweep with `launcher submit -m`")
    if _may_be_warm(invocation):
        code = warm.run_warm(WarmRun.of_this_process(invocation.overrides, invocation.rest))
        if code is not None:
            return code
    if "dry_run=true" not in invocation.overrides and early.possible():
        order: Order | None = early.planned_meanwhile(
            lambda hand_over: guarded(lambda: _plan(invocation, hand_over=hand_over))
        )
    else:
        order = _make_order(invocation)
    return start_ranks(order) if order else 0


def start_ranks(order: Order, *, began: float | None = None) -> int:
    """Run what was planned. `began`: when the command was typed, if not with this process (CLOCK_MONOTONIC)."""
    return run_local(
        read_plan(RunFolder(order.run_folder).plan),
        run_folder=order.run_folder,
        script=order.script,
        args=order.args,
        launch=order.launch,
        planned_at=order.planned_at,
        began=began,
    )


def _may_be_warm(invocation: Invocation) -> bool:
    """Whether a warm server may take the run; it looks at launch.warm itself, where that is not on the command line."""
    unwanted = {"launch.warm=never", "dry_run=true"} & {*invocation.overrides}
    return not unwanted and warm.socket_path().exists()


def _plan(invocation: Invocation, *, hand_over: HandOver) -> int:
    order = _make_order(invocation)
    return hand_over(order) if order else 0


def _make_order(invocation: Invocation) -> Order | None:
    from launcher.commands.prepare import order  # Hydra, which the process that imports torch meanwhile needs not

    return order(invocation)
