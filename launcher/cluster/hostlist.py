"""Slurm's node list expressions: `dgx[01-03,07],login1` ↔ names. https://slurm.schedmd.com/scontrol.html (hostlist)"""

from __future__ import annotations

import re
from collections.abc import Sequence

from launcher.errors import InputError

MAX_HOSTS = 65536  # more than any list that Slurm prints; keeps a wrong bound from filling memory


def expand_hostlist(expression: str) -> tuple[str, ...]:
    """The names of a node list expression, in its order; raises InputError where it is malformed."""
    names: list[str] = []
    for part in _split(expression):
        names.extend(_expand(part, expression))
        if len(names) > MAX_HOSTS:
            raise InputError(f"node list {expression[:60]!r} names more than {MAX_HOSTS} hosts: check its bounds")
    return tuple(names)


def compress_hostlist(names: Sequence[str]) -> str:
    """A short expression for `names`, in their order: runs of consecutive numbers of one prefix and width fold."""
    parts: list[str] = []
    runs: list[tuple[str, list[tuple[str, str]]]] = []  # prefix → (first, last) digits
    for name in names:
        match = re.fullmatch(r"(.*?)(\d+)", name)
        if match is None:
            runs.append((name, []))
            continue
        prefix, digits = match[1], match[2]
        if runs and runs[-1][0] == prefix and runs[-1][1]:
            ranges = runs[-1][1]
            if _follows(ranges[-1][1], digits):
                ranges[-1] = (ranges[-1][0], digits)
            else:
                ranges.append((digits, digits))
        else:
            runs.append((prefix, [(digits, digits)]))
    for prefix, ranges in runs:
        parts.append(prefix + _brackets(ranges))
    return ",".join(parts)


def _follows(last: str, digits: str) -> bool:
    return len(last) == len(digits) and int(digits) == int(last) + 1


def _brackets(ranges: Sequence[tuple[str, str]]) -> str:
    if not ranges:
        return ""
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return ranges[0][0]
    return "[" + ",".join(first if first == last else f"{first}-{last}" for first, last in ranges) + "]"


def _split(expression: str) -> list[str]:
    """At the commas that stand outside brackets."""
    parts = [""]
    depth = 0
    for character in expression.strip():
        depth += {"[": 1, "]": -1}.get(character, 0)
        if depth not in (0, 1):
            raise _malformed(expression, "its brackets do not match")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    if depth:
        raise _malformed(expression, "a [ is not closed")
    return [part for part in parts if part]


def _expand(part: str, expression: str) -> list[str]:
    """All names of one part, which may hold several bracket groups: the last one varies fastest."""
    head, bracket, rest = part.partition("[")
    if not bracket:
        if re.search(r"\s", part):
            raise _malformed(expression, f"{part!r} holds a space")
        return [part]
    inside, _, tail = rest.partition("]")
    tails = _expand(tail, expression) if tail else [""]
    return [head + number + end for number in _numbers(inside, expression) for end in tails]


def _numbers(inside: str, expression: str) -> list[str]:
    numbers: list[str] = []
    for item in inside.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", item)
        if match is None:
            raise _malformed(expression, f"{item!r} is no number and no range")
        first, last = match[1], match[2] or match[1]
        if int(last) < int(first) or int(last) - int(first) >= MAX_HOSTS:
            raise _malformed(expression, f"the range {item} is empty or too long")
        numbers.extend(str(n).zfill(len(first)) for n in range(int(first), int(last) + 1))
    return numbers


def _malformed(expression: str, why: str) -> InputError:
    return InputError(f"{expression[:80]!r} is not a node list ({why}): write it as node[01-04,07],other1")
