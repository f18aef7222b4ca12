"""Interval arithmetic for ports: the range of an expression such as `$((10000 + SLURM_JOB_ID % 20000))`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.lint.shell import unquote

LONGEST = 200  # characters of an expression
DEEPEST = 8  # variables inside variables
Interval = tuple[int, int]
JOB_ID: Interval = (1, 99_999_999)
KNOWN: Mapping[str, Interval] = {
    "RANDOM": (0, 32767),
    "SRANDOM": (0, 2**32 - 1),
    "SLURM_JOB_ID": JOB_ID,
    "SLURM_JOBID": JOB_ID,
    "SLURM_ARRAY_JOB_ID": JOB_ID,
    "SLURM_ARRAY_TASK_ID": (0, 1000),
    "SLURM_PROCID": (0, 1000),
    "SLURM_LOCALID": (0, 15),
    "SLURM_NODEID": (0, 1000),
}
_EXPRESSION = re.compile(r"\$\(\((.*)\)\)|\$\(\s*expr\s+(.*)\)|\$\[(.*)\]|`\s*expr\s+(.*)`|([0-9]{1,12}|\$\{?\w+\}?)")
_TOKEN = re.compile(
    r"\s*(?:(?P<number>[0-9]{1,12})|(?P<tail>\$\{\w+:\s*-(?P<digits>[0-9])\})|\$?\{?(?P<name>[A-Za-z_]\w*)\}?"
    r"|(?P<last>\$\([^()]*tail\s+-c\s*(?P<count>[0-9])[^()]*\))|(?P<sign>[-+*/%()]))"
)


def port_range(value: str, variables: Mapping[str, str], *, depth: int = 0) -> Interval | None:
    """The lowest and highest port that a raw value can give; None if the script does not determine it."""
    text = unquote(value).strip()
    if len(text) > LONGEST or depth > DEEPEST:
        return None
    if shuffled := re.search(r"shuf\s+(?:-n\s*1\s+)?-i\s*([0-9]{1,6})-([0-9]{1,6})", text):
        return int(shuffled[1]), int(shuffled[2])
    if default := re.fullmatch(r"\$\{\w+:?-(.*)\}", text):
        return port_range(default[1], variables, depth=depth + 1)
    inner = _EXPRESSION.fullmatch(text)
    if inner is None:
        return None
    return _Reader(next(group for group in inner.groups() if group is not None), variables, depth).read()


@dataclass
class _Reader:
    """A cursor over an arithmetic expression; None means unknown."""

    text: str
    variables: Mapping[str, str]
    depth: int
    at: int = 0

    def read(self) -> Interval | None:
        found = self._sum()
        return found if not self.text[self.at :].strip() else None

    def _sum(self) -> Interval | None:
        left = self._product()
        while sign := self._sign("+-"):
            left = _combine(sign, left, self._product())
        return left

    def _product(self) -> Interval | None:
        left = self._atom()
        while sign := self._sign("*/%"):
            left = _combine(sign, left, self._atom())
        return left

    def _sign(self, allowed: str) -> str:
        match = re.compile(r"\s*\\?([-+*/%])").match(self.text, self.at)
        if match is None or match[1] not in allowed:
            return ""
        self.at = match.end()
        return match[1]

    def _atom(self) -> Interval | None:
        match = _TOKEN.match(self.text, self.at)
        if match is None:
            return None
        self.at = match.end()
        if match["number"]:
            return int(match["number"]), int(match["number"])
        if digits := match["digits"] or match["count"]:
            return 0, 10 ** int(digits) - 1
        if match["name"]:
            return self._variable(match["name"])
        if match["sign"] != "(" or self.depth > DEEPEST:
            return None
        self.depth += 1
        found = self._sum()
        closed = re.compile(r"\s*\)").match(self.text, self.at)
        self.at = closed.end() if closed else len(self.text) + 1
        return found

    def _variable(self, name: str) -> Interval | None:
        if name in KNOWN:
            return KNOWN[name]
        raw = self.variables.get(name)
        return None if raw is None else port_range(raw, self.variables, depth=self.depth + 1)


def _combine(sign: str, left: Interval | None, right: Interval | None) -> Interval | None:
    """Bounds of `left sign right`, both not negative in what ports are made of."""
    if left is None or right is None:
        return None
    if sign == "+":
        return left[0] + right[0], left[1] + right[1]
    if sign == "-":
        return left[0] - right[1], left[1] - right[0]
    if sign == "*":
        return left[0] * right[0], left[1] * right[1]
    if right[0] <= 0:
        return None
    if sign == "/":
        return left[0] // right[1], left[1] // right[0]
    return (0, right[1] - 1) if left[1] >= right[0] else left
