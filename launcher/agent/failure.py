"""Messages about a failed job: which rank failed first, how, its last output, and its log file."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.agent import main_module
from launcher.agent import rank as rank_module
from launcher.agent.stack_dump import CallStack
from launcher.agent.watch import Hang, odd_ones_out
from launcher.text import shown

_SAME_MOMENT_S = 1.0
_SHOWN_LINES = 25
_SHOWN_FRAMES = 5
_BELOW_THE_SCRIPT = ('"<frozen runpy>"', f'"{main_module.__file__}"', f'"{rank_module.__file__}"')
WHAT_HANGS = {
    "heartbeat": "no heartbeat from rank {ranks} of node {node} for {seconds:.0f} s",
    "start": "rank {ranks} of node {node} has sent no first heartbeat within {seconds:.0f} s (launch.start_timeout_s)",
    "elsewhere": "another node reported it; this is node {node}",
    "silence": "for {seconds:.0f} s no rank has printed anything, used a core or finished a step "
    "(launch.silence_timeout_s)",
}


@dataclass(frozen=True)
class RankEnd:
    """The end of one rank. `at` (CLOCK_MONOTONIC): when its script failed, else when its process ended."""

    rank: int
    local_rank: int
    node: int
    host: str
    pid: int
    code: int
    at: float
    log: Path


def first_failed(ends: Sequence[RankEnd]) -> RankEnd:
    """Return the rank that caused the failure of the others.

    Peers of a killed rank see their connections close before the kernel reports its death, so a death by signal
    counts as earlier than a failure up to one second before it.
    """
    failed = sorted((end for end in ends if end.code), key=lambda end: end.at)
    killed = [end for end in failed if end.code < 0 and end.at - failed[0].at <= _SAME_MOMENT_S]
    return (killed or failed)[0]


def describe(ends: Sequence[RankEnd], *, printed: Sequence[str], oom_kills: int) -> str:
    """Return the message about ranks that ended after a failure.

    `printed`: the last lines of the rank that failed first. `oom_kills`: kills by the OOM killer since the start.
    """
    first = first_failed(ends)
    lines = [*_left_before(ends, first.at)]
    lines.append(
        f"rank {first.rank} failed first (local rank {first.local_rank} of node {first.node}, {first.host}, "
        f"pid {first.pid}): {how_it_ended(first.code, oom_kills=oom_kills)}"
    )
    if others := sum(1 for end in ends if end.code) - 1:
        lines.append(f"{others} other rank{'s' if others > 1 else ''} failed after it")
    said = last_words(printed)
    lines.append(f"its log: {first.log}" + ("; its last words:" if said else " (empty)"))
    return "\n".join([*lines, *(f"    {line}" for line in said)])


def _left_before(ends: Sequence[RankEnd], at: float) -> list[str]:
    """Return a line about ranks that finished before others failed, if any: the others may have waited for them."""
    early = [end for end in ends if end.code == 0 and end.at < at]
    if not early:
        return []
    names = f"rank{'s' if len(early) > 1 else ''} {', '.join(str(end.rank) for end in early)}"
    return [f"{names} left early, with exit code 0, {at - early[0].at:.1f} s before the first failure"]


def describe_hang(
    hang: Hang, stacks: Mapping[int, CallStack], *, left: Sequence[int] = (), first_rank: int, node: int, logs: Path
) -> str:
    """Describe which ranks hang, which differ from the rest, and their stacks. `left`: local ranks that finished."""
    silent = ", ".join(str(first_rank + r) for r in hang.silent)
    lines = ["the job hangs: " + WHAT_HANGS[hang.kind].format(ranks=silent, node=node, seconds=hang.silent_s)]
    lines += [f"rank {first_rank + r} left early, with exit code 0" for r in left]
    stopped = [r for r, stack in stacks.items() if stack.state == "T"]
    places = {r: stack.frames for r, stack in stacks.items() if stack.frames}
    for ranks, what in (
        (stopped, "is stopped (SIGSTOP or a debugger)"),
        (hang.behind, "is behind the others in steps"),
        (odd_ones_out(places), "is at a different place than the others"),
    ):
        lines += [f"odd one out: rank {first_rank + r} {what}" for r in ranks]
    for frames, ranks in _by_place(stacks).items():
        names = ", ".join(f"{first_rank + r} (step {hang.steps.get(r, 0)})" for r in ranks)
        lines.append(f"rank {names}: {shown(' < '.join(frames[:_SHOWN_FRAMES])) or 'gave no stack'}")
    return "\n".join([*lines, f"the full stacks are in {logs}/rank-<r>.log"])


def _by_place(stacks: Mapping[int, CallStack]) -> dict[tuple[str, ...], list[int]]:
    places: dict[tuple[str, ...], list[int]] = {}
    for rank, stack in stacks.items():
        places.setdefault(stack.frames, []).append(rank)
    return places


def how_it_ended(code: int, *, oom_kills: int = 0) -> str:
    """Return `exit code 3`, or the signal's name."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "signal"
    words = f"killed by {name} ({-code})"
    if -code == signal.SIGKILL and oom_kills:
        words += ", most likely by the kernel's out-of-memory killer, which was active: use less host memory per rank"
    return words


def last_words(printed: Sequence[str]) -> list[str]:
    """Return the last traceback that a rank printed, else its last lines; safe for a terminal."""
    lines = [shown(line) for line in printed if line.strip()]
    # torch puts "[rank3]: " before every line of a traceback
    starts = [i for i, line in enumerate(lines) if "Traceback (most recent call last)" in line]
    return _without_our_frames(lines[starts[-1] :] if starts else lines)[-_SHOWN_LINES:]


def _without_our_frames(lines: Sequence[str]) -> list[str]:
    """Drop the frames below the script and the list of extension modules at the end of a crash dump."""
    kept: list[str] = []
    dump = below = False
    for line in lines:
        dump = "(most recent call first)" in line or (dump and line.startswith('  File "'))
        below = dump and (below or any(file in line for file in _BELOW_THE_SCRIPT))
        if not below and not line.startswith("Extension modules: "):
            kept.append(line)
    return kept
