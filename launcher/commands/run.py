"""`launcher run`: plan, write the run folder, start the ranks here, wait for them."""

from __future__ import annotations

from launcher.cli import Invocation, guarded
from launcher.errors import InputError
from launcher.launch import early, warm
from launcher.launch.early import HandOver, Order
from launcher.launch.local import run_local
from launcher.plan import read_plan


def run(invocation: Invocation) -> int:
    """Run the job here; 0 done, 1 failed. Standard output carries rank 0's, whose last line is JSON for a recipe."""
    if invocation.multirun:
        raise InputError("`launcher run` runs one job: give one value for each key, or sweep with `launcher submit -m`")
    if _starts_cold(invocation) and early.possible():
        order: Order | None = early.planned_meanwhile(
            lambda hand_over: guarded(lambda: _plan(invocation, hand_over=hand_over))
        )
    else:
        from launcher.commands.prepare import order as make_order

        order = make_order(invocation)
    return _start(order) if order else 0


def _starts_cold(invocation: Invocation) -> bool:
    """Whether torch will have to be imported here: where no warm server may serve the run, and ranks are wanted."""
    words = invocation.overrides
    return "dry_run=true" not in words and ("launch.warm=never" in words or not warm.socket_path().exists())


def _plan(invocation: Invocation, *, hand_over: HandOver) -> int:
    from launcher.commands.prepare import order as make_order  # Hydra, which the process that imports torch needs not

    order = make_order(invocation)
    return hand_over(order) if order else 0


def _start(order: Order) -> int:
    plan = read_plan(order.run_folder)
    return run_local(
        plan,
        run_folder=order.run_folder,
        script=order.script,
        args=order.args,
        launch=order.launch,
        planned_at=order.planned_at,
    )
