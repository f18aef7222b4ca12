"""Which rank, node or link is slow: the common member of the groups that are slower than their like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class GroupTime:
    """Seconds of one group of an axis for one collective and size."""

    axis: str
    case: str  # what of it: operation and size
    ranks: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class Verdict:
    """Groups that were slow most of the time, and what they have in common."""

    slow_groups: tuple[tuple[str, tuple[int, ...]], ...]
    ranks: tuple[int, ...]  # members of all of them, and of none that was fast
    hosts: tuple[str, ...]
    text: str


def verdict(times: Sequence[GroupTime], hosts: Mapping[int, str], *, threshold: float) -> Verdict:
    """A group is slow that takes `threshold` times as long as the middle one of its axis in two of three cases.

    The middle of an even number is the faster of the two, so that of two groups the slow one shows. Of groups that
    overlap, as pairs of leaves do, one slow member slows up to two in three: there it is the fastest third's last.
    """
    votes: dict[tuple[str, tuple[int, ...]], list[bool]] = {}
    for axis, case in dict.fromkeys((one.axis, one.case) for one in times):
        alike = [one for one in times if (one.axis, one.case) == (axis, case)]
        if len(alike) < 2:
            continue
        overlap = len({rank for one in alike for rank in one.ranks}) < sum(len(one.ranks) for one in alike)
        usual = sorted(one.seconds for one in alike)[(len(alike) - 1) // (3 if overlap else 2)]
        for one in alike:
            votes.setdefault((axis, one.ranks), []).append(one.seconds > threshold * usual)
    slow = tuple(group for group, found in votes.items() if sum(found) * 3 >= 2 * len(found))
    fast = [set(ranks) for group, found in votes.items() if group not in slow for ranks in (group[1],)]
    if not slow:
        compared = len({axis for axis, _ in votes})
        text = (
            f"no group is slow: none takes {threshold:g} times as long as the others of its axis"
            if compared
            else "every axis has one group: there is nothing to compare it with"
        )
        return Verdict((), (), (), text)
    common = set.intersection(*(set(ranks) for _, ranks in slow))
    suspects = tuple(sorted(common - set().union(*fast))) or tuple(sorted(common))
    return _named(slow, suspects, hosts)


def _named(slow: tuple[tuple[str, tuple[int, ...]], ...], ranks: tuple[int, ...], hosts: Mapping[int, str]) -> Verdict:
    groups = ", ".join(f"{axis} {list(members)}" for axis, members in slow)
    if not ranks:
        return Verdict(slow, (), (), f"slow groups without a common member ({groups}): more than one thing is slow")
    on = tuple(sorted({hosts[rank] for rank in ranks}))
    what = f"rank {ranks[0]} on {on[0]}" if len(ranks) == 1 else f"ranks {list(ranks)}"
    if len(ranks) > 1:
        what += f", all on {on[0]}" if len(on) == 1 else f", the link between {' and '.join(on)}"
    return Verdict(slow, ranks, on, f"slow: {what}, common to the slow groups {groups}")
