"""Asks ranks to stop: at the end of a step, by a signal that they handle, or not at all."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from launcher import process
from launcher.run.heartbeat import RankState
from launcher.schema import AUTO

NEVER = "none"
ENDINGS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})  # by which people and systems end a program


def is_urgent(came: Sequence[int]) -> bool:
    """Return whether the signals ask to stop at once: one came twice, or two of those that end a program.

    At a preemption Slurm sends TERM and launch.signal (USR1): that is one request, and ranks have their grace time.
    """
    return len({*came}) < len(came) or len(ENDINGS & {*came}) > 1


@dataclass(frozen=True)
class StopRequest:
    """Local ranks that get time to stop: those that check the stop flag, and those that were signalled."""

    checking: tuple[int, ...] = ()
    signalled: Mapping[int, signal.Signals] = field(default_factory=dict)

    @property
    def asked(self) -> tuple[int, ...]:
        return (*self.checking, *self.signalled)

    def describe(self, stopper: str, *, grace_s: float) -> str:
        """Return the message to the user; `stopper`: who asked."""
        within = f"within {grace_s:g} s; a second signal stops at once"
        if not self.signalled:
            return f"{stopper}: stopping at the end of this step, {within}"
        names = " and ".join(sorted({number.name for number in self.signalled.values()}))
        return f"{stopper}: passed on as {names} to the ranks, which handle it, to end {within}"


def ask_to_stop(
    pids: Mapping[int, int], states: Mapping[int, RankState], came: signal.Signals, *, forward: str
) -> StopRequest:
    """Forward the received signal to ranks that handle it; `pids` by local rank, `forward`: launch.forward_signal."""
    checking = tuple(rank for rank in pids if states[rank].checks_stop)
    signalled = {}
    for rank, pid in pids.items():
        found = None if rank in checking else next(_handled(pid, came, forward), None)
        if found:
            signalled[rank], handlers = found
            process.signal_all(handlers, found[0])
    return StopRequest(checking, signalled)


def _handled(pid: int, came: signal.Signals, forward: str) -> Iterator[tuple[signal.Signals, list[int]]]:
    """Yield signals that a rank, or else its descendants, handle, with the processes that do."""
    for number in _candidates(came, forward):
        if handlers := process.catching(pid, number):
            yield number, handlers


def _candidates(came: signal.Signals, forward: str) -> list[signal.Signals]:
    """Return the received signal, else TERM. INT only if requested: Python itself handles it in every script."""
    if forward == NEVER:
        return []
    if forward != AUTO:
        return [signal.Signals[f"SIG{forward}"]]
    return list(dict.fromkeys([*([] if came is signal.SIGINT else [came]), signal.SIGTERM]))
