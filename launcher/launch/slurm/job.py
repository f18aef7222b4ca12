"""The driver of a batch job: `python -m launcher.launch.slurm.job RUN_FOLDER`, which slurm/train.sbatch becomes.

It runs once for each start of the job, on the first node, and imports no torch:

    1. read the plan and what Slurm gave; stop a crash loop
    2. plan again where the allocation differs and launch.replan allows it
    3. decide which host is which node of the plan, print it, write it into plan.json
    4. start one agent a node with srun, pass Slurm's signal on to them, wait
    5. requeue where the time limit, preemption or a lost node ended the run, never after an application error
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from launcher import env
from launcher.cluster.hostlist import compress_hostlist
from launcher.errors import InputError, JobFailed, LauncherError
from launcher.launch.findings import Level, hosts_to_exclude
from launcher.launch.run_folder import RunFolder, append_line, create_run_folder
from launcher.launch.slurm.allocation import Allocation, lost_nodes, node_address, read_allocation, read_topology
from launcher.launch.slurm.check import read_findings
from launcher.launch.slurm.command import ask
from launcher.launch.slurm.placement import Assignment, Tree, assign
from launcher.launch.slurm.progress import START_EVENT, newest_checkpoint, starts, was_stopped
from launcher.launch.slurm.record import read_submission
from launcher.launch.slurm.replan import fit_allocation
from launcher.launch.slurm.requeue import Outcome, Start, decide, start_problem
from launcher.launch.slurm.settings import SlurmSettings
from launcher.launch.slurm.step import AGENT, CHECK, COORDINATOR, step_argv
from launcher.launch.slurm.sweep import update_table
from launcher.launch.slurm.traffic import node_traffic
from launcher.plan import Plan, read_plan, write_plan

SRUN_LISTENS_S = 3.0  # srun dies of a signal that comes before it has set up its handlers
POLL_S = 0.5


@dataclass
class Signals:
    """Slurm's signals to the batch script, counted by their handlers and passed on by the driver."""

    stop: int = 0  # before the time limit, at preemption
    terminate: int = 0  # scancel, scontrol requeue, preemption without a grace time: Slurm tells the steps itself

    def listen(self, name: str) -> None:
        """Take over the stop signal and TERM."""
        signal.signal(getattr(signal, f"SIG{name}"), self._on_stop)
        signal.signal(signal.SIGTERM, self._on_terminate)

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self.stop += 1

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        self.terminate += 1


@dataclass(frozen=True)
class Driver:
    """One start of one job."""

    folder: RunFolder
    settings: SlurmSettings
    allocation: Allocation

    def run(self, plan: Plan, signals: Signals) -> int:
        """Place, start, wait, decide; returns the exit code of the batch script."""
        start = self._begin()
        try:
            began = time.monotonic()
            plan = self._place(fit_allocation(plan, self.allocation, self.settings, tell=tell))
            self._note("slurm_placed", hosts=plan.hosts, layout=plan.layout.brief(), seconds=time.monotonic() - began)
            self._preflight(plan)
            code = self._run_step(plan, signals)
        except LauncherError as error:
            self._note("slurm_end", code=error.exit_code, why=str(error))
            raise
        if code and (signals.terminate or not self._is_running()):
            self._note("slurm_end", code=code, why="ended by Slurm (scancel, requeue or preemption)")
            return code
        return self._end(plan, code, start, signals)

    def _begin(self) -> Start:
        """Note this start; raises JobFailed where it must not go on."""
        checkpoint = newest_checkpoint(self.folder.path)
        self._note(
            START_EVENT, hosts=self.allocation.hosts, restart=self.allocation.restart, checkpoint_step=checkpoint
        )
        history = starts(self.folder)
        problem = start_problem(history, max_requeues=self.settings.max_requeues)
        if problem:
            self._note("slurm_end", code=1, why=problem)
            raise JobFailed(problem)
        return history[-1]

    def _place(self, plan: Plan) -> Plan:
        """The plan with its hosts, written for every rank to read and to check itself against."""
        topology, why = read_topology()
        if topology is None:
            tell(f"placement: Slurm's topology is not known ({why}); all nodes count as one leaf, in Slurm's order")
        assignment = assign(node_traffic(plan), Tree.of(self.allocation.hosts, topology))
        tell(placement_text(plan, assignment))
        placed = replace(plan, hosts=assignment.hosts)
        write_plan(placed, self.folder.path)
        return placed

    def _preflight(self, plan: Plan) -> None:
        """Look at every node before any rank starts; raises JobFailed naming the nodes to leave out."""
        if not self.settings.preflight:
            return
        began = time.monotonic()
        said = ask(self._step(plan, CHECK), environment=self._variables(plan))
        findings = read_findings(said.out)
        for finding in findings:
            if finding.level >= Level.WARNING:
                tell(f"preflight: {finding.host}: {finding.check}: {finding.message}")
        silent = sorted(set(plan.hosts) - {finding.host for finding in findings})
        bad = sorted({*hosts_to_exclude(findings), *silent})
        self._note("slurm_preflight", bad=bad, seconds=time.monotonic() - began)
        if silent:
            tell(f"preflight: no answer from {', '.join(silent)}: {said.reason}")
        if bad:
            raise JobFailed(
                f"preflight: {', '.join(bad)} cannot run this job, see above: submit it again with "
                f"launch.exclude={compress_hostlist(bad)}, or with launch.preflight=false to try all the same"
            )

    def _step(self, plan: Plan, module: str) -> tuple[str, ...]:
        work_dir = read_submission(self.folder.path).work_dir
        return step_argv(
            plan, self.settings, run_folder=self.folder.path, work_dir=work_dir, python=sys.executable, module=module
        )

    def _variables(self, plan: Plan) -> dict[str, str]:
        return {**env.environment(), **self.settings.environment, COORDINATOR: node_address(plan.hosts[0])}

    def _run_step(self, plan: Plan, signals: Signals) -> int:
        """Start the agents and wait for them, passing the stop signal on; returns srun's exit code."""
        argv = self._step(plan, AGENT)
        self._note("slurm_step", argv=argv)
        process = subprocess.Popen(argv, env=self._variables(plan))
        listens_at = time.monotonic() + SRUN_LISTENS_S
        passed_on = 0
        while True:
            try:
                return process.wait(POLL_S)
            except subprocess.TimeoutExpired:
                if signals.stop > passed_on and time.monotonic() > listens_at:
                    passed_on = signals.stop
                    tell(f"SIG{self.settings.signal}: asking the ranks to write a checkpoint and stop")
                    process.send_signal(getattr(signal, f"SIG{self.settings.signal}"))

    def _end(self, plan: Plan, code: int, start: Start, signals: Signals) -> int:
        outcome = Outcome(
            code=code,
            signalled=signals.stop > 0,
            stopped=was_stopped(self.folder, num_nodes=plan.placement.num_nodes),
            lost_nodes=lost_nodes(self.allocation.hosts) if code else (),
            checkpoint_step=newest_checkpoint(self.folder.path),
        )
        decision = decide(outcome, start, requeue=self.settings.requeue, max_requeues=self.settings.max_requeues)
        tell(decision.why)
        self._note("slurm_end", code=code, why=decision.why, checkpoint_step=outcome.checkpoint_step)
        if decision.requeue:
            answer = ask(("scontrol", "requeue", self.allocation.job_id))
            if answer.code:
                raise JobFailed(f"scontrol requeue {self.allocation.job_id} failed: {answer.reason}")
        return decision.code

    def _is_running(self) -> bool:
        """Whether Slurm means this job to run on: not when it is being cancelled or requeued at this moment."""
        answer = ask(("squeue", "-h", "-j", self.allocation.job_id, "-o", "%T"))
        return answer.out.strip() == "RUNNING"

    def _note(self, event: str, **details: Any) -> None:
        line = {"event": event, "at": time.time(), "job_id": self.allocation.job_id, **details}
        append_line(self.folder.ledger, line)
        if event == "slurm_end":
            update_table(self.folder.path)


def placement_text(plan: Plan, assignment: Assignment) -> str:
    """Which host is which node of the plan, and what that saves."""
    ranks = plan.placement.ranks_per_node
    width = max(len(host) for host in assignment.hosts)
    rows = [
        f"  node {node:<4} {host:<{width}}  {leaf}  ranks {node * ranks}-{node * ranks + ranks - 1}"
        for node, (host, leaf) in enumerate(zip(assignment.hosts, assignment.leaves, strict=True))
    ]
    how = "exact" if assignment.exact else "heuristic"
    summary = f"placement ({how}): {assignment.num_leaves} leaf switch{'es' if assignment.num_leaves > 1 else ''}"
    if assignment.as_given > 0:
        spared = 1 - assignment.cost / assignment.as_given
        summary += f", {spared:.0%} less over the spine than in Slurm's order"
    return "\n".join([summary, *rows])


def tell(message: str) -> None:
    """A word to the reader of the job's log."""
    print(f"launcher: {message}", file=sys.stderr, flush=True)


def main(argv: Sequence[str]) -> int:
    """Run the job of one run folder; returns the exit code of the batch script."""
    try:
        if len(argv) != 1:
            raise InputError("usage: python -m launcher.launch.slurm.job RUN_FOLDER (slurm/train.sbatch does it)")
        folder = create_run_folder(Path(argv[0]).absolute())
        plan = read_plan(folder.path)
        settings = SlurmSettings.from_config(plan.config.get("launch") or {})
        signals = Signals()
        signals.listen(settings.signal)
        return Driver(folder, settings, read_allocation()).run(plan, signals)
    except LauncherError as error:
        tell(str(error))
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
