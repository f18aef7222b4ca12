"""Heartbeats: shared memory for state of a node's ranks and requests of their agent.

Each rank writes only its own slot, the agent only the header; every field is an aligned 8-byte word, so readers never
see half of one. Times are CLOCK_MONOTONIC seconds, shared by all processes of a machine; 0 means "not yet". A rank that
never writes (any torchrun script) costs nothing and is not watched for hangs.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from launcher import env

_NAME = "launcher-board"
_SLOT_BYTES = 128
_DOUBLE, _INT = struct.Struct("=d"), struct.Struct("=q")
_STOP = 0
_BEAT, _STEP, _STEP_S, _SCRIPT, _FAILED, _FIRST_STEP, _GROUPS, _CHECKS_STOP, _OWN_S = range(9)


@dataclass(frozen=True)
class RankState:
    """What one rank has reported so far."""

    beat_at: float  # its last heartbeat
    step: int  # steps it has finished
    step_s: float  # duration of the last one
    script_at: float  # the script began
    failed_at: float  # the script failed: an exception, or an exit code
    first_step_at: float  # the first step was finished
    groups_at: float  # the process groups were ready
    checks_stop: bool  # it checks the stop flag at the end of each step
    own_s: float = 0.0  # total of all its steps, without waits for others if known


class Pace(NamedTuple):
    """A rank's number of steps, and the seconds that it was busy with them itself."""

    step: int
    own_s: float


class Heartbeats:
    """Mapped shared memory without a file name: ranks inherit its descriptor; it is freed after the last of them."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._memory = mmap.mmap(fd, 0)

    @classmethod
    def create(cls, *, num_ranks: int) -> Heartbeats:
        """Create zeroed memory for `num_ranks` local ranks, inherited by child processes."""
        fd = os.memfd_create(_NAME)
        os.set_inheritable(fd, True)
        os.ftruncate(fd, _SLOT_BYTES * (num_ranks + 1))
        return cls(fd)

    @classmethod
    def attach(cls, fd: int) -> Heartbeats | None:
        """Map the memory of an inherited descriptor; None if the descriptor now refers to something else."""
        try:
            return cls(fd) if _NAME in str(Path(f"/proc/self/fd/{fd}").readlink()) else None
        except OSError:
            return None

    @classmethod
    def of_this_rank(cls) -> tuple[Heartbeats, int] | None:
        """Return this rank's inherited heartbeats and its local rank; None without a launcher (plain torchrun)."""
        fd, local_rank = env.get(env.HEARTBEAT_FD), env.get("LOCAL_RANK")
        if fd is None or local_rank is None:
            return None
        heartbeats = cls.attach(int(fd))
        return (heartbeats, int(local_rank)) if heartbeats else None

    @property
    def num_ranks(self) -> int:
        return len(self._memory) // _SLOT_BYTES - 1

    @property
    def stop_requested(self) -> bool:
        """Whether the job was asked to stop at the end of a step."""
        return bool(self._get(_INT, 0, _STOP))

    def request_stop(self) -> None:
        self._put(_INT, 0, _STOP, 1)

    def clear(self, local_rank: int) -> None:
        """Clear what an earlier process of this local rank wrote."""
        start = _SLOT_BYTES * (local_rank + 1)
        self._memory[start : start + _SLOT_BYTES] = bytes(_SLOT_BYTES)

    def state(self, local_rank: int) -> RankState:
        """Return what the rank has reported so far."""
        slot = local_rank + 1
        return RankState(
            beat_at=float(self._get(_DOUBLE, slot, _BEAT)),
            step=int(self._get(_INT, slot, _STEP)),
            step_s=float(self._get(_DOUBLE, slot, _STEP_S)),
            script_at=float(self._get(_DOUBLE, slot, _SCRIPT)),
            failed_at=float(self._get(_DOUBLE, slot, _FAILED)),
            first_step_at=float(self._get(_DOUBLE, slot, _FIRST_STEP)),
            groups_at=float(self._get(_DOUBLE, slot, _GROUPS)),
            checks_stop=bool(self._get(_INT, slot, _CHECKS_STOP)),
            own_s=float(self._get(_DOUBLE, slot, _OWN_S)),
        )

    def mark_script(self, local_rank: int) -> None:
        """Record that the rank's script begins now."""
        self._put(_DOUBLE, local_rank + 1, _SCRIPT, time.monotonic())

    def mark_failed(self, local_rank: int) -> None:
        """Record that the rank's script has just failed."""
        self._put(_DOUBLE, local_rank + 1, _FAILED, time.monotonic())

    def mark_groups(self, local_rank: int) -> None:
        """Record that the rank's process groups are ready."""
        self._put(_DOUBLE, local_rank + 1, _GROUPS, time.monotonic())

    def mark_checks_stop(self, local_rank: int) -> None:
        """Record that the rank checks the stop flag, so the agent need not kill it at once."""
        self._put(_INT, local_rank + 1, _CHECKS_STOP, 1)

    def beat(
        self, local_rank: int, *, step: int | None = None, step_s: float = 0.0, own_s: float | None = None
    ) -> None:
        """Send a heartbeat; `step`: number of finished steps, `step_s`: duration of the last one.

        `own_s`: the part of it in which the rank itself was busy; None: unknown.
        """
        slot, now = local_rank + 1, time.monotonic()
        self._put(_DOUBLE, slot, _BEAT, now)
        if step is None:
            return
        self._put(_INT, slot, _STEP, step)
        self._put(_DOUBLE, slot, _STEP_S, step_s)
        self._put(_DOUBLE, slot, _OWN_S, self._get(_DOUBLE, slot, _OWN_S) + (step_s if own_s is None else own_s))
        if not self._get(_DOUBLE, slot, _FIRST_STEP):
            self._put(_DOUBLE, slot, _FIRST_STEP, now)

    def _get(self, kind: struct.Struct, slot: int, field: int) -> float | int:
        value: float | int = kind.unpack_from(self._memory, slot * _SLOT_BYTES + 8 * field)[0]
        return value

    def _put(self, kind: struct.Struct, slot: int, field: int, value: float) -> None:
        kind.pack_into(self._memory, slot * _SLOT_BYTES + 8 * field, value)
