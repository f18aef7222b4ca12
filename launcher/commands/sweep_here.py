"""`launcher run -m`: a sweep on this machine, as many jobs at a time as it has room for, and a table at the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from launcher import env
from launcher.cluster.commands import run as run_command
from launcher.commands.claim import claimed
from launcher.commands.common import checked_settings
from launcher.commands.given_plan import named_folder
from launcher.commands.invocation import Invocation
from launcher.commands.prepare import check_devices, check_inputs, plan_run
from launcher.config.compose import load, sweep
from launcher.console import notify, say, terminal_width
from launcher.errors import InputError
from launcher.files import write_json, write_text
from launcher.local.slots import Need, Pool, Share, need_of, pool_of
from launcher.planner import Plan, read_plan
from launcher.report.table import LEFT, RIGHT, draw
from launcher.run.folder import RunFolder, SweepFolder
from launcher.run.owner import release, this_process
from launcher.slurm.sweep import SweepMember, results, write_sweep
from launcher.units import format_seconds

POLL_S = 0.1
PATIENCE_S = 60.0  # for jobs to end that were asked to
OUTPUT = "output.txt"


@dataclass(frozen=True)
class SweepJob:
    """One combination: its words, those in which it differs, and what of the machine it takes."""

    words: tuple[str, ...]
    own: tuple[str, ...]
    plan: Plan
    need: Need


@dataclass
class Running:
    """A job that was started."""

    number: int
    job: SweepJob
    share: Share
    process: subprocess.Popen[bytes]
    began: float


def run_sweep(invocation: Invocation) -> int:
    """Run every combination; 0 if all of them ended well, 1 otherwise. One that fails does not end the others."""
    combinations = sweep(invocation.overrides)
    settings = checked_settings(combinations[0])
    jobs = sweep_jobs(combinations, invocation.rest)
    pool = pool_of([job.need for job in jobs], run_command)
    pool.check([job.need for job in jobs])
    as_json = settings.options.output == "json"
    if settings.options.dry_run:
        for number, job in enumerate(jobs):
            say(f"run {number}: {job.need}, {job.plan.layout.brief()}  {' '.join(job.own)}")
        say("dry run: nothing was started")
        return 0
    owner, ended = this_process(), "failed"
    with claimed(named_folder(settings), owner, name="sweep") as run_folder:
        folder = SweepFolder(run_folder.path)
        write_sweep(folder.path, [SweepMember(job.own, job.plan) for job in jobs])
    say(f"sweep folder: {folder.path} ({len(jobs)} runs)")
    try:
        rows = Queue(folder, pool, jobs, invocation.rest).run()
        ended = "done" if all(row["state"] == "done" for row in rows) else "failed"
    except KeyboardInterrupt:
        ended = "interrupted"
        raise
    finally:
        release(RunFolder(folder.path), owner, ended=ended)
    text = "\n".join(table(rows))
    write_json(folder.results, {"runs": rows})
    write_text(folder.table, text + "\n")
    print(json.dumps({"folder": str(folder.path), "runs": rows}) if as_json else text)
    return 0 if ended == "done" else 1


def sweep_jobs(combinations: Sequence[Sequence[str]], args: Sequence[str]) -> list[SweepJob]:
    """Plan every job before any starts; raises InputError."""
    same = set[str](combinations[0]).intersection(*combinations)
    found = []
    for words in combinations:
        kept = [word for word in words if not word.startswith("run_dir=")]
        settings = load(kept)
        if settings.options.plan is not None:
            raise InputError("plan= is one job, but a sweep plans several: leave plan= out, or run without -m")
        if settings.options.launch.place != "local":
            raise InputError(
                f"`launcher run -m` runs on this machine: leave launch={settings.options.launch.place} out"
            )
        plan = plan_run(settings, kept, args).plan
        if plan.placement.num_nodes > 1:
            raise InputError(f"{' '.join(words)} needs {plan.placement.num_nodes} nodes: use `launcher submit -m`")
        check_inputs(plan)
        check_devices(plan)
        kept = [word for word in kept if not word.startswith(("output=", "dry_run="))]
        own = tuple(word for word in words if word not in same)
        found.append(SweepJob(tuple(kept), own, plan, need_of(plan, cores=env.usable_cores())))
    return found


class Queue:
    """Starts jobs in their order, each as soon as what it takes is free."""

    def __init__(self, folder: SweepFolder, pool: Pool, jobs: Sequence[SweepJob], args: Sequence[str]) -> None:
        self.folder, self.pool, self.args = folder, pool, list(args)
        self.waiting = list(enumerate(jobs))
        self.running: list[Running] = []
        self.ended: dict[int, tuple[int, Running, float]] = {}

    def run(self) -> list[dict[str, Any]]:
        """The row of each job, when the last has ended."""
        try:
            while self.waiting or self.running:
                self._start()
                time.sleep(POLL_S)
                self._look()
        finally:
            self._stop()
        return [self._row(number, row) for number, row in enumerate(rows_here(self.folder))]

    def _start(self) -> None:
        while self.waiting:
            number, job = self.waiting[0]
            share = self.pool.take(job.need)
            if share is None:
                return
            del self.waiting[0]
            notify(f"run {number} starts on {share}: {' '.join(job.own) or 'as given'}")
            self.running.append(Running(number, job, share, self._process(number, job, share), time.monotonic()))

    def _process(self, number: int, job: SweepJob, share: Share) -> subprocess.Popen[bytes]:
        run = self.folder.run(number).path
        rest = ["--", *self.args] if self.args else []
        words = [*job.words, f"run_dir={run}", "launch.warm=never"]  # the warm server has cores and GPUs of its own
        argv = [sys.executable, "-P", "-m", "launcher.cli", "run", *words, *rest]
        run.mkdir(parents=True, exist_ok=True)
        with (run / OUTPUT).open("ab") as out, on_cores(share.cores):
            return subprocess.Popen(
                argv, env=env.environment() | share.variables, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    def _look(self) -> None:
        for one in [one for one in self.running if one.process.poll() is not None]:
            self.running.remove(one)
            self.pool.give_back(one.job.need, one.share)
            seconds = time.monotonic() - one.began
            self.ended[one.number] = one.process.returncode, one, seconds
            log = self.folder.run(one.number).path / OUTPUT
            how = "is done" if not one.process.returncode else f"failed with code {one.process.returncode} ({log})"
            notify(f"run {one.number} {how} after {format_seconds(seconds)}")

    def _stop(self) -> None:
        """Nothing is left running where the queue ends early."""
        for one in self.running:
            one.process.send_signal(signal.SIGTERM)
        for one in self.running:
            try:
                one.process.wait(timeout=PATIENCE_S)
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()

    def _row(self, number: int, row: dict[str, Any]) -> dict[str, Any]:
        code, one, seconds = self.ended[number]
        state = "done" if code == 0 else f"failed ({code})"
        return {**row, "state": state, "on": str(one.share), "seconds": seconds}


def rows_here(folder: SweepFolder) -> list[dict[str, Any]]:
    """What the folder of a sweep on this machine says of each run: its words, its layout, how far it is."""
    plans = [(row, folder.run(number).plan) for number, row in enumerate(results(folder.path))]
    return [{**row, "layout": read_plan(file).layout.brief() if file.is_file() else None} for row, file in plans]


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each job."""
    columns = {"run": RIGHT, "state": LEFT, "on": LEFT, "layout": LEFT, "took": RIGHT, "steps": RIGHT, "loss": RIGHT}
    columns |= {"a step": RIGHT, "overrides": LEFT}
    return draw(columns, [_cells(row) for row in rows], width=terminal_width(sys.stdout), spare=("on", "layout"))


def _cells(row: Mapping[str, Any]) -> list[str]:
    loss, step_s = row["loss"], row["step_s"]
    return [
        *(str(row["run"]), row["state"], row["on"], row["layout"] or "-", format_seconds(row["seconds"])),
        *(str(row["steps"]), "-" if loss is None else f"{loss:.4g}", "-" if step_s is None else format_seconds(step_s)),
        row["overrides"],
    ]


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """What is started here runs on these cores; none given: on all that this process may use."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cores or before)
        yield
    finally:
        os.sched_setaffinity(0, before)
