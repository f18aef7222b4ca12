"""Runs a plan's ranks in the allocation of this shell: `salloc -N2 launcher run …`.

It does what a batch job does at each start: placement, a check of every node, one agent per node by srun. Nothing is
requeued: the allocation belongs to the user and continues after the run.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import FrameType

from launcher import process
from launcher.agent.launch import Launch, planned
from launcher.console import notify
from launcher.errors import InputError
from launcher.planner import Plan
from launcher.run import ledger
from launcher.run.folder import RunFolder, create_run_folder
from launcher.run.owner import Owner
from launcher.slurm.allocation import Allocation, read_allocation
from launcher.slurm.job import Driver
from launcher.slurm.jobstate import JobState
from launcher.slurm.nodecheck import Steps
from launcher.slurm.progress import starts
from launcher.slurm.record import read_slurm_launch
from launcher.slurm.request import check_equal_nodes
from launcher.slurm.requeue import JobStart, Outcome
from launcher.slurm.settings import NEVER, SlurmSettings
from launcher.slurm.step import AGENT
from launcher.slurm.unstarted import in_words
from launcher.slurm.watching import Signals

STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # in addition to launch.stop_signals, which batch jobs have set


@dataclass
class ShellSignals(Signals):
    """Signals that ask the agents to stop, as Ctrl-C and a closed terminal; before there are any, they end the run."""

    numbers: Sequence[signal.Signals] = ()

    def listen(self) -> None:
        for number in {*self.numbers, *STOP}:
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, self._on_stop)

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        if not self.in_step:
            raise KeyboardInterrupt
        super()._on_stop(number, frame)


@dataclass(frozen=True)
class ShellDriver(Driver):
    """One run in an allocation that continues after it."""

    def _begin(self) -> list[JobStart]:
        self._note(ledger.START, hosts=self.allocation.hosts, restart=0, **self._saved().details())
        return starts(self.folder)

    @contextmanager
    def _guarded(self, plan: Plan, hosts: Sequence[str]) -> Iterator[None]:
        yield  # a guard would requeue, but there is nothing to requeue

    def _replaces(self, lost: Sequence[str], plan: Plan, hosts: Sequence[str], signals: Signals) -> bool:
        return False  # without sbatch --no-kill Slurm starts no step in an allocation that has lost a node

    def _start_step(self, argv: Sequence[str], variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start srun in its own session, so that the terminal's Ctrl-C reaches only this process. It ends with it."""
        follow = partial(process.die_with_parent, os.getpid(), signal.SIGTERM)
        return subprocess.Popen(argv, env=variables, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=follow)

    def _end(self, outcome: Outcome, state: JobState, history: Sequence[JobStart], signals: Signals) -> int:
        why = _why(outcome, state, stopped=signals.stop > 0)
        self._note(ledger.END, code=outcome.code, why=why)
        if outcome.code:
            notify(f"the run ended: {why}")
        return exit_code(outcome, state)


def exit_code(outcome: Outcome, state: JobState) -> int:
    """Of the run. What srun says of a step that Slurm has killed (137) is not the ranks' own code."""
    return min(outcome.code, 1) if outcome.lost_nodes or state.ending else outcome.code


def _why(outcome: Outcome, state: JobState, *, stopped: bool) -> str:
    if outcome.code == 0:
        return "the run is complete"
    if outcome.lost_nodes:  # with which Slurm ends the allocation, too
        return f"{', '.join(outcome.lost_nodes)} no longer answered"
    if outcome.unstarted:
        return in_words(outcome.unstarted)
    if state.ending:
        return "the allocation ended"
    return "stopped from its terminal, or by `launcher cancel`" if stopped else "the job failed by itself"


def run_in_allocation(run_folder: RunFolder, owner: Owner) -> int:
    """Start the ranks of a prepared run on the nodes of this shell's allocation and wait for them.

    Returns 0, or the exit code of the agents if it failed. Raises InputError and LauncherError before any rank starts,
    KeyboardInterrupt if it is stopped before that.
    """
    folder, allocation = create_run_folder(run_folder.path), read_allocation()
    plan = planned(folder)
    launch, slurm = read_slurm_launch(folder)
    settings = settings_here(slurm.settings, plan, allocation)
    signals = ShellSignals(settings.signal, numbers=launch.settings.handled_signals())
    signals.listen()
    return ShellDriver(folder, settings, allocation, launch, slurm.clusters, owner).run(plan, signals)


def settings_here(settings: SlurmSettings, plan: Plan, allocation: Allocation) -> SlurmSettings:
    """Return Slurm's settings for this allocation; the plan need not use all its nodes.

    Raises InputError if it has fewer nodes than the plan needs.
    """
    check_equal_nodes(plan)
    given, needed = len(allocation.hosts), plan.placement.num_nodes
    if given < settings.fewest_nodes(needed):
        raise InputError(
            f"the plan needs {needed} nodes, but this allocation (job {allocation.job_id}) has {given}: ask salloc for "
            f"-N{needed}, or set launch.nnodes={given}"
        )
    if settings.setup:
        notify("launch.setup is for batch jobs: the nodes get the environment of this shell")
    return replace(settings, requeue=NEVER, spares=max(0, given - needed))


def step_text(plan: Plan, launch: Launch, folder: RunFolder, settings: SlurmSettings) -> str:
    """Return the srun command that would start the agents, with the nodes in Slurm's order."""
    allocation = read_allocation()
    hosts = allocation.hosts[: plan.placement.num_nodes]
    here = settings_here(settings, plan, allocation)
    steps = Steps(folder.path, here, launch, allocation.hosts, allocation.job_id)
    return shlex.join(steps.argv(plan, AGENT, hosts))
