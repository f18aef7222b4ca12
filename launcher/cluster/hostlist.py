"""Slurm's node list expressions: `dgx[01-03,07],login1` ↔ names. https://slurm.schedmd.com/scontrol.html (hostlist)"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice, product
from math import prod

from launcher.errors import InputError
from launcher.text import printable

MAX_HOSTS = 65536  # more than any list that Slurm prints; keeps a wrong bound from filling memory
LONGEST_EXPRESSION = 2**20
LONGEST_NAME = 255  # of a host: https://man7.org/linux/man-pages/man7/hostname.7.html
MOST_GROUPS = 8  # bracket groups in one name
_RANGE = re.compile(r"([0-9]{1,15})(?:-([0-9]{1,15}))?")
_NUMBERED = re.compile(r"(.*?)([0-9]{1,15})", re.DOTALL)
_GROUP = re.compile(r"\[([^\[\]]*)\]")


def expand_hostlist(expression: str) -> tuple[str, ...]:
    """The names of a node list expression, in its order; raises InputError where it is malformed or too long."""
    if len(expression) > LONGEST_EXPRESSION:
        raise _malformed(expression, f"it has more than {LONGEST_EXPRESSION} characters")
    names: list[str] = []
    for part in _split(expression):
        names.extend(islice(_expand(part, expression), MAX_HOSTS + 1 - len(names)))
        if len(names) > MAX_HOSTS:
            raise _too_many(expression)
    return tuple(names)


def compress_hostlist(names: Sequence[str]) -> str:
    """A short expression for `names`, in their order: runs of consecutive numbers of one prefix and width fold."""
    parts: list[str] = []
    runs: list[tuple[str, list[tuple[str, str]]]] = []  # prefix → (first, last) digits
    for name in names:
        match = _NUMBERED.fullmatch(name)
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
    """At the commas outside brackets."""
    parts: list[str] = []
    text, start, depth = expression.strip(), 0, 0
    for at, character in enumerate(text):
        depth += {"[": 1, "]": -1}.get(character, 0)
        if depth not in (0, 1):
            raise _malformed(expression, "its brackets do not match")
        if character == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    if depth:
        raise _malformed(expression, "a [ is not closed")
    return [part for part in (*parts, text[start:]) if part]


def _expand(part: str, expression: str) -> Iterator[str]:
    """All names of one part, which may hold several bracket groups: the last one varies fastest."""
    if re.search(r"\s", part):
        raise _malformed(expression, f"{printable(part)!r} holds a space")
    pieces = _GROUP.split(part)
    fixed, groups = pieces[::2], pieces[1::2]
    if len(groups) > MOST_GROUPS or sum(map(len, fixed)) > LONGEST_NAME:
        raise _malformed(expression, f"{printable(part)!r} is too long a name, or has too many brackets")
    numbers = [_numbers(group, expression) for group in groups]
    if prod(map(len, numbers)) > MAX_HOSTS:
        raise _too_many(expression)
    for chosen in product(*numbers):
        yield fixed[0] + "".join(number + text for number, text in zip(chosen, fixed[1:], strict=True))


def _numbers(inside: str, expression: str) -> list[str]:
    numbers: list[str] = []
    for item in inside.split(","):
        match = _RANGE.fullmatch(item)
        if match is None:
            raise _malformed(expression, f"{printable(item)!r} is no number and no range")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first >= MAX_HOSTS:
            raise _malformed(expression, f"the range {item} is empty or too long")
        numbers.extend(str(n).zfill(len(match[1])) for n in range(first, last + 1))
        if len(numbers) > MAX_HOSTS:
            raise _too_many(expression)
    return numbers


def _too_many(expression: str) -> InputError:
    shown = printable(expression, longest=60)
    return InputError(f"node list {shown!r} names more than {MAX_HOSTS} hosts: check its bounds")


def _malformed(expression: str, why: str) -> InputError:
    return InputError(f"{printable(expression)!r} is not a node list ({why}): write it as node[01-04,07],other1")
