"""The driver of a batch job: `python -m launcher.slurm.job RUN_FOLDER`, which slurm/train.sbatch becomes.

It runs once per start of the job, on the first node, and does not import torch:

    1. read the plan and the allocation; stop a crash loop
    2. plan again if the allocation differs and launch.replan allows it
    3. assign hosts to nodes of the plan, print the assignment, write it into plan-start.json
    4. check every node, measure their bandwidth; exclude bad nodes if there are enough others
    5. start one agent per node with srun, forward Slurm's signal to them, wait; spares replace lost nodes
    6. requeue if the time limit, preemption or a lost node ended the run, or a node could not start it (without that
       node), never after an application error
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from launcher import env
from launcher.agent.launch import Launch, planned
from launcher.cluster import Cluster
from launcher.cluster.hostlist import compress_hostlist
from launcher.errors import InputError, JobFailed, LauncherError
from launcher.planner import Plan, write_plan
from launcher.preflight.bandwidth import RECIPE
from launcher.preflight.findings import Finding, Level, hosts_to_exclude
from launcher.run import ledger
from launcher.run.folder import RunFolder, SweepFolder, create_run_folder
from launcher.run.node_state import forget_node_states, states_in_words
from launcher.run.owner import Owner, cancelled_since_claim, claim_as_job, release
from launcher.slurm import nodecheck
from launcher.slurm.allocation import Allocation, gpu_types, lost_nodes, read_allocation, read_topology
from launcher.slurm.command import ask
from launcher.slurm.environment import of_step
from launcher.slurm.guard import guard_argv
from launcher.slurm.heard import ANSWER
from launcher.slurm.jobstate import JobState, job_state, requeue
from launcher.slurm.life import has_ended
from launcher.slurm.nodecheck import Steps
from launcher.slurm.placement import Assignment, Tree, assign
from launcher.slurm.progress import newest_change, newest_checkpoint, starts, was_stopped
from launcher.slurm.record import read_slurm_launch
from launcher.slurm.replan import Hosts, fit_allocation
from launcher.slurm.requeue import JobStart, Outcome, Saved, decide, start_problem
from launcher.slurm.settings import ALWAYS, SlurmSettings
from launcher.slurm.step import AGENT
from launcher.slurm.sweep import update_table
from launcher.slurm.traffic import node_traffic
from launcher.slurm.watching import Signals, StepWatch, end

TERMINATED = 143  # a shell's exit code of a process ended by TERM
ENDED_BY_SLURM = "Slurm ended the job before its ranks started"


class NodesCannotStart(JobFailed):
    """Slurm could start nothing on some nodes of the allocation; `hosts`: host → reason."""

    def __init__(self, message: str, hosts: Mapping[str, str]) -> None:
        super().__init__(message)
        self.hosts = hosts


@dataclass(frozen=True)
class Driver:
    """One start of one job."""

    folder: RunFolder
    settings: SlurmSettings
    allocation: Allocation
    launch: Launch
    clusters: Mapping[str, Cluster]
    owner: Owner

    def run(self, planned: Plan, signals: Signals) -> int:
        """Place, start, wait, decide; return the exit code of the batch script."""
        history = self._begin()
        hosts = self.allocation.hosts
        lost: tuple[str, ...] = ()
        failed: Mapping[str, str] = {}
        try:
            for attempt in count():
                steps = self._steps(attempt, signals)
                plan, hosts = self._ready(planned, hosts, steps)
                with self._guarded(plan, hosts):
                    code, failed = self._run_step(plan, steps, signals)
                lost = lost_nodes(plan.hosts) if code and not signals.terminate else ()
                out = (*lost, *failed)
                if not self._replaces(out, plan, hosts, signals):
                    break
                hosts = tuple(host for host in hosts if host not in out)
        except (LauncherError, OSError) as raised:
            error = self._unwritable(raised) if isinstance(raised, OSError) else raised
            state = job_state(self.allocation.job_id)
            failed = error.hosts if isinstance(error, NodesCannotStart) else {}
            if not (state.ending or state.preempted or signals.terminate or failed):
                self._note(ledger.END, code=error.exit_code, why=str(error))
                release(self.folder, self.owner, ended="failed")
                if error is raised:
                    raise
                raise error from raised
            if not (failed and self.settings.comes_back):  # the decision has the reason, and excludes the nodes itself
                notify(f"while starting: {error}")
            outcome = Outcome(error.exit_code, signals.stop > 0, preempted=state.preempted, unstarted=failed)
            return self._end(outcome, state, history, signals)
        state = job_state(self.allocation.job_id) if code else JobState()
        states = states_in_words(self.folder, num_nodes=plan.placement.num_nodes)
        if code == 0 and set(states) != {"done"} and signals.terminate:  # srun may end with 0 when it was ended
            code = TERMINATED
        stopped = was_stopped(self.folder, num_nodes=plan.placement.num_nodes)
        outcome = Outcome(code, signals.stop > 0, stopped, tuple(lost), preempted=state.preempted, unstarted=failed)
        outcome = replace(outcome, everywhere=1 < len(plan.hosts) == len(failed))
        return self._end(outcome, state, history, signals)

    def _unwritable(self, error: OSError) -> JobFailed:
        where = error.filename or self.folder.path
        return JobFailed(f"{where}: {error.strerror}: the job cannot start without what it writes into its run folder")

    def _begin(self) -> list[JobStart]:
        """Record this start and return all starts. Raises JobFailed if the job must not continue."""
        saved = self._saved().details()
        self._note(ledger.START, hosts=self.allocation.hosts, restart=self.allocation.restart, **saved)
        history = starts(self.folder)
        problem = start_problem(
            history, max_requeues=self.settings.max_requeues, always=self.settings.requeue == ALWAYS
        )
        if problem:
            self._note(ledger.END, code=1, why=problem)
            raise JobFailed(problem)
        return history

    def _saved(self) -> Saved:
        named = self.settings.progress
        return newest_change(self.launch.work_dir / named) if named else newest_checkpoint(self.folder)

    def _steps(self, attempt: int, signals: Signals) -> Steps:
        hosts, run_id = self.allocation.hosts, f"{self.allocation.job_id}-{self.allocation.restart}"
        ended = partial(_terminated, signals)
        return Steps(self.folder.path, self.settings, self.launch, hosts, run_id, attempt, ended)

    def _ready(self, planned: Plan, hosts: tuple[str, ...], steps: Steps) -> tuple[Plan, tuple[str, ...]]:
        """Return the plan on good nodes, and the remaining hosts: bad ones are excluded if there are enough others."""
        plan, chosen = self._place(planned, hosts)
        for inspect in (self._check, self._measure):  # a node that does not answer would spoil the measurement
            findings = inspect(plan, chosen, steps)
            if hosts_to_exclude(findings):
                hosts = self._without_bad(
                    hosts, findings, fewest=self.settings.fewest_nodes(planned.placement.num_nodes)
                )
                plan, chosen = self._place(planned, hosts)
        return plan, hosts

    def _without_bad(self, hosts: tuple[str, ...], findings: Sequence[Finding], *, fewest: int) -> tuple[str, ...]:
        """Return the good hosts. Raises JobFailed if they are fewer than the job needs."""
        bad = hosts_to_exclude(findings)
        left = tuple(host for host in hosts if host not in bad)
        if len(left) < fewest:
            silent = {f.host: f.message for f in findings if f.host in bad and f.check == ANSWER}
            raise NodesCannotStart(_excluded(bad), silent) if set(silent) == set(bad) else JobFailed(_excluded(bad))
        notify(f"going on without {', '.join(bad)}: {len(left)} nodes are left")
        return left

    def _place(self, planned: Plan, hosts: Sequence[str]) -> tuple[Plan, tuple[str, ...]]:
        """Return the plan with its hosts, written for every rank to check itself against, and all candidate hosts."""
        began = time.monotonic()
        found = Hosts(tuple(hosts), gpu_types(hosts) if self.clusters else {}, self.clusters)
        fit = fit_allocation(planned, found, self.settings, notify=notify)
        topology, why = read_topology()
        if topology is None:
            notify(f"placement: Slurm's topology is not known ({why}); all nodes count as one leaf, in Slurm's order")
        assignment = assign(node_traffic(fit.plan), Tree.of(fit.hosts, topology))
        placed = replace(fit.plan, hosts=assignment.hosts[: fit.plan.placement.num_nodes])
        notify(placement_text(placed, assignment))
        write_plan(placed, self.folder.plan_of_start)
        self._note(ledger.PLACED, hosts=placed.hosts, layout=placed.layout.brief(), seconds=time.monotonic() - began)
        return placed, assignment.hosts

    def _check(self, plan: Plan, hosts: Sequence[str], steps: Steps) -> list[Finding]:
        """Return the findings of launch.preflight."""
        if not self.settings.preflight:
            return []
        return self._judge(ledger.PREFLIGHT, steps, lambda: nodecheck.look_at(steps, plan, hosts))

    def _measure(self, plan: Plan, hosts: Sequence[str], steps: Steps) -> list[Finding]:
        """Return the findings of launch.check_bandwidth; spares were measured at the start."""
        if steps.attempt or not nodecheck.wants_bandwidth(plan, self.settings):
            return []
        return self._judge(ledger.BANDWIDTH, steps, lambda: nodecheck.measure(steps, plan, hosts))

    def _judge(self, event: str, steps: Steps, check: Callable[[], list[Finding]]) -> list[Finding]:
        """Return what a check found; time it, print its problems, and record it. Raises JobFailed if it was ended."""
        began = time.monotonic()
        findings = check()
        if steps.ended():  # with the tasks of the check, which says nothing about their nodes
            raise JobFailed(ENDED_BY_SLURM)
        seconds, bad = time.monotonic() - began, hosts_to_exclude(findings)
        for finding in findings:
            if finding.level >= Level.WARNING or finding.check == RECIPE:
                notify(f"{finding.host or 'all nodes'}: {finding.check}: {finding.message}")
        self._note(event, bad=bad, seconds=seconds)
        if of_all := [f"{f.check}: {f.message}" for f in findings if f.level is Level.PROBLEM and not f.host]:
            raise JobFailed("; ".join(of_all))
        return findings

    @contextmanager
    def _guarded(self, plan: Plan, hosts: Sequence[str]) -> Iterator[None]:
        """With spares: let a guard on another node, a spare if possible, requeue the job if this node dies."""
        here = env.get("SLURMD_NODENAME")
        others = sorted((host for host in hosts if host != here), key=lambda host: host in plan.hosts)
        if not (self.settings.spares and here and others):
            yield
            return
        argv = guard_argv(self.allocation.job_id, here, on=others[0])
        with self.folder.guard_log.open("ab") as log:
            process = subprocess.Popen(argv, env=of_step(env.environment()), stdout=log, stderr=log)
        try:
            yield
        finally:
            end(process)

    def _run_step(self, plan: Plan, steps: Steps, signals: Signals) -> tuple[int, Mapping[str, str]]:
        """Start the agents and wait for them; return srun's exit code, and the hosts that could not start theirs.

        Raises JobFailed if Slurm ends the job already: it would not end this step.
        """
        if steps.ended():
            raise JobFailed(ENDED_BY_SLURM)
        argv = steps.argv(plan, AGENT, plan.hosts)
        forget_node_states(self.folder)
        self._note(ledger.STEP, argv=argv)
        signals.in_step = True
        process = self._start_step(argv, steps.variables(plan))
        spared_job = self.allocation.job_id if self.settings.spares else None
        watch = StepWatch(process, signals, self.folder, plan.hosts, notify, spared_job)
        code = watch.wait()
        return code, watch.errors.unstarted() if code else {}

    def _start_step(self, argv: Sequence[str], variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(argv, env=variables, stderr=subprocess.PIPE)

    def _replaces(self, lost: Sequence[str], plan: Plan, hosts: Sequence[str], signals: Signals) -> bool:
        """Return whether spares replace the lost nodes at once, without a requeue."""
        left = [host for host in hosts if host not in lost]
        if not lost or signals.stop or not self.settings.spares or len(left) < plan.placement.num_nodes:
            return False
        spares = [host for host in left if host not in plan.hosts]
        notify(f"{', '.join(lost)} cannot go on: going on at once with the {len(left)} nodes that are left")
        self._note(ledger.REPLACED, lost=lost, spares=spares, **self._saved().details())
        return True

    def _end(self, outcome: Outcome, state: JobState, history: Sequence[JobStart], signals: Signals) -> int:
        """Decide what follows, record it, requeue if so decided; return the job's exit code."""
        if outcome.code and (state.ending or (signals.terminate and not state.preempted)):
            why = "ended by Slurm (scancel, requeue or preemption)"
            self._note(ledger.END, code=outcome.code, why=why, sent_back=True)
            return outcome.code
        saved = self._saved()
        decision = decide(
            replace(outcome, saved=saved),
            history,
            requeue=self.settings.comes_back,
            always=self.settings.requeue == ALWAYS,
            max_requeues=self.settings.max_requeues,
        )
        if decision.requeue and cancelled_since_claim(self.folder):  # its scancel comes soon, or came to another step
            decision = replace(
                decision, requeue=False, why=f"{decision.why.partition(';')[0]}; not requeued: cancelled"
            )
        notify(decision.why)
        sent_back = outcome.preempted and decision.requeue
        self._note(ledger.END, code=outcome.code, why=decision.why, sent_back=sent_back, **saved.details())
        if decision.requeue:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which the requeue sends to all processes of this script
            requeue(self.allocation.job_id, without=decision.without, notify=notify)
            if cancelled_since_claim(self.folder):  # a requeue also brings a job back that was cancelled just before
                notify("cancelled in the meantime: the job does not come back")
                ask(("scancel", self.allocation.job_id))
        else:
            release(self.folder, self.owner, ended="failed" if decision.code else "done")
        return decision.code

    def _note(self, event: str, **details: Any) -> None:
        line = ledger.JobEvent(event, self.allocation.job_id, time.time(), details)
        try:
            ledger.append_event(self.folder.ledger, line)
            if event == ledger.END:
                update_table(self.folder.path)
        except OSError as error:
            notify(f"{error.filename or self.folder.ledger}: {event} is not recorded ({error.strerror}): going on")


def placement_text(plan: Plan, assignment: Assignment) -> str:
    """Describe which host is which node of the plan, and what that saves."""
    ranks = plan.placement.ranks_per_node
    width = max(len(host) for host in assignment.hosts)
    rows = []
    for node, (host, leaf) in enumerate(zip(assignment.hosts, assignment.leaves, strict=True)):
        planned = node < plan.placement.num_nodes
        who, note = (
            (f"node {node}", f"ranks {node * ranks}-{node * ranks + ranks - 1}") if planned else ("spare", "idle")
        )
        rows.append(f"  {who:<9} {host:<{width}}  {leaf}  {note}")
    how = "exact" if assignment.exact else f"heuristic, {_excess(assignment)}"
    summary = f"placement ({how}): {assignment.num_leaves} leaf switch{'es' if assignment.num_leaves > 1 else ''}"
    if assignment.as_given > 0:
        spared = 1 - assignment.cost / assignment.as_given
        summary += f", {spared:.0%} less over the spine than in Slurm's order"
    return "\n".join([summary, *rows])


def _excess(assignment: Assignment) -> str:
    """Describe how far a placement may be from the best one."""
    if assignment.excess is None:
        return "how far from the best is not known"
    return f"at most {assignment.excess:.0%} above the best" if assignment.excess > 0 else "none is better"


def _terminated(signals: Signals) -> bool:
    return signals.terminate > 0


def _excluded(bad: Sequence[str]) -> str:
    return (
        f"{', '.join(bad)} cannot run this job, see above: submit it again with --exclude={compress_hostlist(bad)} "
        f"(launch.exclude='{compress_hostlist(bad)}'), or with launch.preflight=false or launch.check_bandwidth=false "
        "to try anyway"
    )


def _check_array(folder: Path, job_id: str) -> None:
    """Raise InputError if the tasks of a job array would all write into one run's folder."""
    if "_" in job_id and not SweepFolder(folder.parent).members.is_file():
        raise InputError(
            f"this is {job_id}, a task of a job array, and {folder} is one run, which all tasks would write: submit it "
            "without --array (is SBATCH_ARRAY_INX set?), or make a sweep with `launcher submit -m`"
        )


def notify(message: str) -> None:
    """Print a message to the job's log."""
    print(f"launcher: {message}", file=sys.stderr, flush=True)


def main(argv: Sequence[str]) -> int:
    """Run the job of one run folder; return the exit code of the batch script."""
    try:
        if len(argv) != 1:
            raise InputError("usage: python -m launcher.slurm.job RUN_FOLDER (slurm/train.sbatch does it)")
        folder = create_run_folder(Path(argv[0]).absolute())
        plan = planned(folder)
        launch, slurm = read_slurm_launch(folder)
        settings = slurm.settings
        signals = Signals(settings.signal)
        signals.listen()
        allocation = read_allocation()
        _check_array(folder.path, allocation.job_id)
        owner = claim_as_job(folder, allocation.job_id, job_ended=has_ended)
        return Driver(folder, settings, allocation, launch, slurm.clusters, owner).run(plan, signals)
    except LauncherError as error:
        notify(str(error))
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
