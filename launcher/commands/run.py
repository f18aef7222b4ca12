"""`launcher run`: plan, write the run folder, start the ranks here, wait for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher import env
from launcher.commands.guard import error_document, guarded, wants_json
from launcher.commands.invocation import Invocation
from launcher.faststart import library_load, warm
from launcher.faststart.warm import WarmRun
from launcher.run.folder import RunFolder
from launcher.run.owner import Owner, release, this_process

if TYPE_CHECKING:
    from launcher.faststart.overlapped_import import HandOver, Order


def run(invocation: Invocation) -> int:
    """Run the job here; 0 done, 1 failed. Standard output is that of rank 0; a recipe's last line is JSON."""
    if invocation.multirun:
        from launcher.commands.sweep_here import run_sweep

        return run_sweep(invocation)
    if any(word.startswith("again=") for word in invocation.overrides):
        from launcher.commands.again import repeated

        invocation = repeated(invocation)
    if _uses_allocation(invocation.overrides):
        return _run_in_allocation(invocation)
    if {"launch=ssh", "launch=torchrun"} & {*invocation.overrides}:  # torch is for the hosts to import
        order = _make_order(invocation, this_process())
        return start_ranks(order) if order else 0
    if _may_be_warm(invocation):
        code = warm.run_warm(WarmRun.of_this_process(invocation.overrides, invocation.rest))
        if code is not None:
            return code
    overlapped = "dry_run=true" not in invocation.overrides and library_load.possible()
    with library_load.loading() if overlapped else nullcontext():
        from launcher.faststart import overlapped_import  # and with it what a run needs that no server takes
    owner, as_json = this_process(), wants_json(invocation.overrides)
    if overlapped:
        order = overlapped_import.plan_in_child(
            lambda hand_over: guarded(lambda: _plan(invocation, owner, hand_over=hand_over), as_json=as_json), owner
        )
    else:
        order = _make_order(invocation, owner)
    return start_ranks(order) if order else 0


def start_ranks(order: Order, *, began: float | None = None) -> int:
    """Run a planned job in the folder that this process owns, and record there how it ended.

    `began`: when the user entered the command, if before this process started (CLOCK_MONOTONIC).
    """
    from launcher.agent.launch import read_launch
    from launcher.local.start import run_local
    from launcher.planner import read_plan

    folder = RunFolder(order.run_folder)
    with _released(folder, this_process()) as end:
        start = read_launch(folder.launch)
        if start.settings.place == "ssh":
            from launcher.ssh.start import run_over_ssh  # which no run on this machine needs

            end.code = run_over_ssh(folder)
        else:
            with chdir(start.work_dir):
                end.code = run_local(
                    read_plan(folder.present_plan),
                    run_folder=order.run_folder,
                    launch=start.settings,
                    planned_at=order.planned_at,
                    began=began,
                )
    return end.code


@dataclass
class _End:
    code: int = 1


@contextmanager
def _released(folder: RunFolder, owner: Owner) -> Iterator[_End]:
    """The owner of a folder while the ranks run; it says afterwards how that ended."""
    end, ended = _End(), "failed"
    try:
        yield end
        ended = "failed" if end.code else "done"
        if end.code and _prints_json(folder):
            print(error_document("job_failed", [f"the job failed: its ranks' logs are in {folder.logs}"], end.code))
    except KeyboardInterrupt:
        ended = "interrupted"
        raise
    finally:
        release(folder, owner, ended=ended)


def _prints_json(folder: RunFolder) -> bool:
    from launcher.planner import read_plan

    return read_plan(folder.present_plan).options.output == "json"


def _uses_allocation(overrides: Sequence[str]) -> bool:
    """Whether the run belongs on the nodes that this shell has from Slurm; launch=FILE may say another place."""
    chosen = {word for word in overrides if word.startswith("launch=")}
    if not env.get("SLURM_JOB_ID") or chosen - {"launch=slurm"}:
        return False
    from launcher.slurm.allocation import has_other_nodes

    return has_other_nodes()


def _run_in_allocation(invocation: Invocation) -> int:
    from launcher.commands import allocation  # Slurm's side, which no other run needs
    from launcher.slurm.start import run_in_allocation

    owner = this_process()
    order = allocation.order(invocation, owner)
    if order is None:
        return 0
    folder = RunFolder(order.run_folder)
    with _released(folder, owner) as end:
        end.code = run_in_allocation(folder, owner)
    return end.code


def _may_be_warm(invocation: Invocation) -> bool:
    """Return whether a warm server may take the run; it reads launch.warm itself if that is not on the command line."""
    unwanted = {"launch.warm=never", "dry_run=true"} & {*invocation.overrides}
    return not unwanted and warm.may_listen()


def _plan(invocation: Invocation, owner: Owner, *, hand_over: HandOver) -> int:
    order = _make_order(invocation, owner)
    return hand_over(order) if order else 0


def _make_order(invocation: Invocation, owner: Owner) -> Order | None:
    from launcher.commands import over_ssh, prepare  # Hydra, which the process that imports torch does not need
    from launcher.commands.common import checked_settings

    settings = checked_settings(invocation.overrides)
    if settings.options.ssh is not None:
        return over_ssh.order(invocation, owner, settings)
    return prepare.order(invocation, owner, settings)
