"""Jobs of one node for tests: `driver.py` as a process, with its run folder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import preloaded

from launcher import process
from launcher.run.folder import RunFolder
from launcher.run.node_state import node_states

HERE = Path(__file__).parent


class Job:
    """One `driver.py` process and its run folder; with `cli` a `launcher run` in its place, `launch` being strings."""

    def __init__(
        self,
        folder: Path,
        *args: str,
        ranks: int = 4,
        script: Path | None = None,
        cli: bool = False,
        **launch: object,
    ) -> None:
        self.folder = folder
        script = script or HERE / "job_script.py"
        if cli:
            shape = [f"cluster.node.num_gpus={ranks}", "layout.tp=1", "layout.pp=1", f"layout.dp={ranks}"]
            options = [f"launch.{key}={value}" for key, value in launch.items()]
            command = ["-m", "launcher.cli", "run", f"script={script}", f"run_dir={folder}", *shape, *options, "--"]
        else:
            command = [str(HERE / "driver.py"), str(folder), str(script), str(ranks), json.dumps(launch)]
        self.process = preloaded.Popen(
            [sys.executable, *command, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def log(self, rank: int) -> str:
        path = self.folder / "logs" / f"rank-{rank}.log"
        return path.read_text() if path.exists() else ""

    def wait_for(self, condition: Callable[[], bool], *, timeout_s: float = 240.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"waited {timeout_s} s; logs: {[self.log(r) for r in range(2)]}"
            assert self.process.poll() is None, self.process.communicate()[1]
            time.sleep(0.02)

    def wait_until_looping(self, ranks: int = 4) -> None:
        self.wait_for(lambda: all(" has " in self.log(rank) for rank in range(ranks)))

    def members(self) -> list[int]:
        """The fork server first, then the ranks, then what they started."""
        return process.descendants(self.process.pid)

    def rank_pid(self, rank: int) -> int:
        """The process of a rank, as its agent wrote it down: numbers of processes wrap around, and so say no order."""
        [state] = node_states(RunFolder(self.folder))
        return state.ranks[rank]

    def finish(self, *, timeout_s: float = 240.0) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, out, err


@contextmanager
def started_jobs(folder: Path) -> Iterator[Callable[..., Job]]:
    """Jobs in folders of their own; those that still run are killed at the end."""
    jobs: list[Job] = []

    def start_job(*args: str, **options: object) -> Job:
        jobs.append(Job(folder / f"run{len(jobs)}", *args, **options))  # type: ignore[arg-type]
        return jobs[-1]

    try:
        yield start_job
    finally:
        for job in jobs:
            if job.process.poll() is None:  # else its number may be that of another process by now
                process.signal_all([job.process.pid, *job.members()], signal.SIGKILL)
            job.process.wait()


def gone(pids: list[int], *, timeout_s: float = 120.0) -> bool:
    """Whether all processes end within the time."""
    deadline = time.monotonic() + timeout_s
    while any(process.state(pid) not in (None, "Z") for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
