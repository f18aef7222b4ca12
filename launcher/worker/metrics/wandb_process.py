"""wandb in a separate process that follows metrics.jsonl, so that no step waits for wandb.

`WandbProcess` is rank 0's side. The process, `python -m launcher.worker.metrics.wandb_process RUN_DIR`, imports wandb
while steps run, at a lower priority, and hands it every line of the file, those of earlier starts too: an offline run
is whole after a resume (wandb cannot add to one). It ends when rank 0 says so, with the run's page as an artifact, or
when rank 0 is gone.

Online it starts with the first step. Offline it starts OFFLINE_AFTER_S later, and a run that ends before is kept in
metrics.jsonl: wandb costs a second of CPU and half a second at the end. `launcher sync` starts it for such a run.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from launcher import env, process
from launcher.console import notify
from launcher.planner.options import TrackingOptions
from launcher.planner.record import Plan, read_plan
from launcher.run.folder import RunFolder
from launcher.run.metrics import StepMetrics, read_new_steps
from launcher.run.wandb_folders import note_offline, wandb_id
from launcher.worker.metrics.wandb_login import asked_mode, login

POLL_S = 1.0
OFFLINE_AFTER_S = 10.0
MODULE = "launcher.worker.metrics.wandb_process"
FINISH_TIMEOUT_S = 60.0  # in addition to tracking.init_timeout_s
REPORT_TIMEOUT_S = 30.0  # of that, for the page
LOW_PRIORITY = 10
END = b"end\n"


class WandbProcess:
    """A sink of the tracker: nothing is sent to the process but that the run has ended. `offline`: wandb's mode."""

    def __init__(
        self, run_dir: Path, *, timeout_s: float, offline: bool, offline_after_s: float = OFFLINE_AFTER_S
    ) -> None:
        self._run_dir, self._timeout_s, self._offline = run_dir, timeout_s, offline
        self._wait_s = offline_after_s if offline else 0.0
        self._first_step_at: float | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._complaints = TemporaryFile()  # noqa: SIM115 (not a pipe, which would be full one day)

    def log(self, metrics: StepMetrics) -> None:
        """The step is in metrics.jsonl already; the process starts with a step, if it does not run yet and is due."""
        now = time.monotonic()
        if self._first_step_at is None:
            self._first_step_at = now
            if self._offline:
                note_offline(RunFolder(self._run_dir))
        if self._process is None and now >= self._first_step_at + self._wait_s:
            command = [sys.executable, "-P", "-m", MODULE, str(self._run_dir)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._complaints
            )

    def close(self) -> None:
        """Let it take the last steps; says what went wrong."""
        if self._process is None:
            if self._first_step_at is not None:
                notify(
                    "wandb has no run yet, for this one was short: `launcher sync "
                    f"{shlex.quote(str(self._run_dir))}` makes it from metrics.jsonl and uploads it"
                )
            self._complaints.close()
            return
        why = ""
        try:
            said, _ = self._process.communicate(END, timeout=self._timeout_s)
            for line in said.decode(errors="replace").splitlines():
                notify(f"wandb: {line}")
        except subprocess.TimeoutExpired:
            process.signal_all([self._process.pid, *process.descendants(self._process.pid)], signal.SIGKILL)
            why = f"it did not finish within {self._timeout_s:g} s"
        if self._process.wait() != 0:
            notify(f"wandb failed ({why or self._complaint()}); {RunFolder(self._run_dir).metrics} has the metrics")
        self._complaints.close()

    def _complaint(self) -> str:
        self._complaints.seek(0)
        lines = self._complaints.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def mode_of(tracking: TrackingOptions) -> Any:
    """wandb's mode: online, offline or disabled."""
    if tracking.mode != "auto":
        return tracking.mode
    return asked_mode() or ("online" if login() else "offline")


def follow(run: Any, metrics: Path, *, ended: Callable[[], bool]) -> None:
    """Hand every finished step to a wandb run, once each, until `ended()`, which waits a while."""
    position, last = 0, int(run.starting_step) - 1
    while True:
        is_last = ended()
        steps, position = read_new_steps(metrics, position)
        for step in steps:
            if step.step > last:
                line = step.to_line()
                last = line.pop("step")
                run.log(line, step=last)
        if is_last:
            return


def arguments_of(plan: Plan, run_dir: Path) -> dict[str, Any]:
    """What wandb.init is given: the keys of tracking.* that were set, then wandb's own variables, then ours."""
    tracking, usual = plan.options.tracking, TrackingOptions()
    kind = plan.options.recipe.name if plan.options.program is None else "script"
    chosen = {
        "project": (tracking.project if tracking.project != usual.project else None, "WANDB_PROJECT", usual.project),
        "name": (tracking.name, "WANDB_NAME", run_dir.name),
        "job_type": (tracking.job_type, "WANDB_JOB_TYPE", kind),
        "dir": (None, "WANDB_DIR", str(run_dir)),
    }
    return {
        # None: wandb reads its variable
        **{name: key or (None if env.get(variable) else own) for name, (key, variable, own) in chosen.items()},
        "entity": tracking.entity,
        "group": tracking.group,
        "tags": list(tracking.tags) or None,
        "id": wandb_id(run_dir),
        "resume": "allow",
        "config": {**json.loads(json.dumps(plan.to_dict())), "layout_brief": plan.layout.brief()},
    }


def _open_run(run_dir: Path) -> Any:
    """One wandb run a job, in the run folder. No key is read or written by us."""
    import wandb

    plan = read_plan(RunFolder(run_dir).present_plan)
    tracking = plan.options.tracking
    arguments = {
        **arguments_of(plan, run_dir),
        "settings": wandb.Settings(console="off", silent=True, init_timeout=tracking.init_timeout_s),
    }
    try:
        return wandb.init(mode=mode_of(tracking), **arguments)
    except wandb.errors.CommError as error:
        print(f"no connection ({error}); this run is kept offline in {run_dir}/wandb", flush=True)
        return wandb.init(mode="offline", **arguments)


class _Stdin:
    """Rank 0, seen from the process: it says that it ends, or it is gone."""

    said = b""

    def ended(self) -> bool:
        """Whether nothing more comes; waits POLL_S for that."""
        if not process.readable([0], timeout_s=POLL_S):
            return False
        self.said += (data := os.read(0, 64))
        return not data or self.said.endswith(END)


def _add_report(run: Any, run_dir: Path) -> None:
    """Give a run that ended the page of `launcher report` as an artifact; where that fails, say so and go on."""
    import wandb

    page = RunFolder(run_dir).report
    command = [sys.executable, "-P", "-m", "launcher.cli", "report", str(run_dir), f"file={page}"]
    try:
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=REPORT_TIMEOUT_S)
        artifact = wandb.Artifact(f"report-{run.id}", type="report")
        artifact.add_file(str(page), skip_cache=True, policy="immutable")  # stays in the run folder until a sync
        run.log_artifact(artifact)
    except (OSError, subprocess.SubprocessError, ValueError, wandb.errors.Error) as error:
        print(f"the run has no report there ({error}): `launcher report {shlex.quote(str(run_dir))}`", flush=True)


@contextmanager
def low_priority() -> Iterator[None]:
    """Leave the cores to the steps during the block, and not afterwards: then rank 0 waits for this process.

    On cores that others keep busy that would take minutes. Not every user may raise a priority again.
    """
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, before + LOW_PRIORITY)
    yield
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, before)


def main(run_dir: Path) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # for the ranks; this process ends after rank 0
    stdin = _Stdin()
    with nullcontext() if process.readable([0], timeout_s=0) else low_priority():  # readable: the run has ended
        run = _open_run(run_dir)
        follow(run, RunFolder(run_dir).metrics, ended=stdin.ended)
    offline, whole = bool(run.offline), stdin.said.endswith(END)
    if whole:
        _add_report(run, run_dir)
    run.finish(exit_code=0 if whole else 1)
    if offline:
        print(f"the run is kept offline; to upload it: launcher sync {shlex.quote(str(run_dir))}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
