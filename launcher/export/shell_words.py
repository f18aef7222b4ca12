"""Variables and sums in the words of a shell script. Nothing is run: `$(…)` stays unknown."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable

UNKNOWN = "$(…)"
LONGEST = 200_000  # characters of one value
DEEPEST = 20
NAME = re.compile(r"[A-Za-z_]\w*|\d|[@*#?]")
FORM = re.compile(r"(?P<name>[A-Za-z_]\w*|\d+)(?:\[[@*]\])?(?:(?P<form>:?[-=+])(?P<rest>.*))?", re.DOTALL)
SUM = re.compile(r"[\d\s+*/%()<>=-]{1,200}")
Values = dict[str, str]
OPERATORS: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.floordiv,
    ast.Mod: operator.mod,
}
LARGEST = 10**12


def substituted(text: str, values: Values, depth: int = 0) -> str:
    """A text with the variables that are known put in; `${TP:-8}` is 8 where TP is not set."""
    pieces: list[str] = []
    at = length = 0
    while at < len(text):
        piece, at = _piece(text, at, values, depth)
        length += len(piece)
        if length > LONGEST:
            return UNKNOWN
        pieces.append(piece)
    return "".join(pieces)


def _piece(text: str, at: int, values: Values, depth: int) -> tuple[str, int]:
    """What begins at a place, with its value, and where it ends."""
    if text[at] == "`":
        end = text.find("`", at + 1)
        return UNKNOWN, end + 1 if end >= 0 else len(text)
    if text[at] != "$":
        next_at = min((found for found in (text.find("$", at), text.find("`", at)) if found >= 0), default=len(text))
        return text[at:next_at], next_at
    if text.startswith("$((", at):
        end = _closed(text, at + 1, "(", ")")
        return _sum(text[at + 3 : end - 2], values, depth), end
    if text.startswith("$(", at):
        return UNKNOWN, _closed(text, at + 1, "(", ")")
    if text.startswith("$[", at):
        end = _closed(text, at + 1, "[", "]")
        return _sum(text[at + 2 : end - 1], values, depth), end
    if text.startswith("${", at):
        end = _closed(text, at + 1, "{", "}")
        return _braced(text[at + 2 : end - 1], values, depth), end
    name = NAME.match(text, at + 1)
    if not name:
        return "$", at + 1
    return values.get(name[0], f"${name[0]}"), name.end()


def _closed(text: str, at: int, opens: str, closes: str) -> int:
    """The place after the bracket that closes the one at `at`."""
    depth = 0
    for place in range(at, len(text)):
        depth += (text[place] == opens) - (text[place] == closes)
        if depth == 0:
            return place + 1
    return len(text)


def _braced(inner: str, values: Values, depth: int) -> str:
    match = FORM.fullmatch(inner)
    if not match or depth > DEEPEST:
        return "${…}"
    name, form = match["name"], match["form"] or ""
    value = values.get(name)
    if form.endswith("+"):
        return substituted(match["rest"].strip("\"'"), values, depth + 1) if value else ""
    if form and (value is None or (value == "" and form.startswith(":"))):
        value = substituted(match["rest"].strip("\"'"), values, depth + 1)
        if form.endswith("="):
            values[name] = value
    return f"${name}" if value is None else value


def _sum(inner: str, values: Values, depth: int) -> str:
    """The value of whole numbers with + - * / %."""
    if depth > DEEPEST:
        return UNKNOWN
    named = re.sub(r"(?<![\w$])([A-Za-z_]\w*)", r"$\1", inner)
    words = substituted(named, values, depth + 1)
    if not SUM.fullmatch(words):
        return UNKNOWN
    try:
        return str(_evaluated(ast.parse(words.strip(), mode="eval").body))
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
        return UNKNOWN


def _evaluated(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluated(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        found = OPERATORS[type(node.op)](_evaluated(node.left), _evaluated(node.right))
        if abs(found) > LARGEST:
            raise ValueError("too large")
        return found
    raise ValueError("no sum of whole numbers")
