"""The process environment: the only file that reads os.environ and the machine's core count."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import InputError
from launcher.text import whole_number

# These keep libraries from starting a thread pool at import; a forked process would not have the threads.
SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

# Variables of ranks: the paths of the plan and of the run folder, and the descriptor of the node's heartbeats.
PLAN, RUN_DIR, HEARTBEAT_FD = "LAUNCHER_PLAN", "LAUNCHER_RUN_DIR", "LAUNCHER_HEARTBEAT_FD"
# Variables of agents: where the plan's first node listens, and what identifies the agents of a start.
COORDINATOR, RUN_ID = "LAUNCHER_COORDINATOR", "LAUNCHER_RUN_ID"


def usable_cores() -> int:
    """Return the CPU cores that this process may use (its affinity mask, not the machine's total)."""
    return len(os.sched_getaffinity(0))


def core_numbers() -> list[int]:
    """Return the numbers of these cores."""
    return sorted(os.sched_getaffinity(0))


def environment() -> dict[str, str]:
    """Return a copy of this process's environment, for child processes."""
    return dict(os.environ)


def get(name: str, default: str | None = None) -> str | None:
    """Return a variable, or `default` if it is unset or empty."""
    return os.environ.get(name) or default


def take(name: str) -> str | None:
    """Return a variable and remove it, so that child processes do not inherit it."""
    return os.environ.pop(name, None) or None


def replace(variables: Mapping[str, str]) -> None:
    """Replace the environment of this process by `variables`, as exec would: for a newly forked rank."""
    os.environ.clear()
    os.environ.update(variables)


@contextmanager
def overridden(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables temporarily: some libraries read theirs only at import."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@dataclass(frozen=True)
class RankEnv:
    """The environment of a rank: torchrun's variables, and ours if the launcher started it.

    `plan` and `run_dir` are None under plain torchrun.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node: int
    restarts: int
    plan: Path | None
    run_dir: Path | None


def rank_env() -> RankEnv:
    """Return the RankEnv of this process; raises InputError with the missing variables if it is not a rank."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    missing = [name for name in names if whole_number(os.environ.get(name)) is None]
    if missing:
        raise InputError(
            f"{', '.join(missing)} not set to a number: this process was not started as a rank; "
            "use `launcher run`, or torchrun"
        )
    rank, world_size, local_rank, local_world_size = (int(os.environ[name]) for name in names)
    plan, run_dir = os.environ.get(PLAN), os.environ.get(RUN_DIR)
    return RankEnv(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=local_world_size,
        node=whole_number(os.environ.get("GROUP_RANK")) or 0,
        restarts=whole_number(os.environ.get("TORCHELASTIC_RESTART_COUNT")) or 0,
        plan=Path(plan) if plan else None,
        run_dir=Path(run_dir) if run_dir else None,
    )
