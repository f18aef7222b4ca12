"""Text tables that fit the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

LEFT, RIGHT = "<", ">"
BOLD, PLAIN = "\x1b[1m", "\x1b[0m"
NARROWEST = 12  # of a column with wrapped text


def draw(
    columns: Mapping[str, str],
    rows: Sequence[Sequence[str]],
    *,
    bold: bool = False,
    width: int | None = None,
    spare: Sequence[str] = (),
) -> list[str]:
    """Draw a header line, then one line per row. `columns`: name → side (LEFT or RIGHT); `bold` for a terminal.

    If that is wider than `width`, columns of `spare` are dropped in order; then the widest text columns are wrapped. No
    word is truncated.
    """
    sides, table = list(columns.values()), [list(columns), *map(list, rows)]
    for name in spare:
        if width is not None and sum(_widths(table)) + len(sides) - 1 > width and name in table[0]:
            index = table[0].index(name)
            del sides[index]
            for cells in table:
                del cells[index]
    split = [[[cell] for cell in cells] for cells in table]
    if width is not None:
        split = _wrapped(table, sides, width)
    widths = [max(len(text) for cells in split for text in cells[column]) for column in range(len(sides))]
    lines = [_row(cells, sides, widths) for cells in split]
    head = [f"{BOLD}{line}{PLAIN}" for line in lines[0]] if bold else lines[0]
    return [*head, *(line for row in lines[1:] for line in row)]


def _widths(table: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(cell) for cell in cells) for cells in zip(*table, strict=True)]


def _wrapped(table: Sequence[Sequence[str]], sides: Sequence[str], width: int) -> list[list[list[str]]]:
    """Return every cell as lines: the widest text column is narrowed until the table fits."""
    widths = _widths(table)
    while sum(widths) + len(widths) - 1 > width:
        left = [i for i, side in enumerate(sides) if side == LEFT and widths[i] > NARROWEST]
        if not left:
            break
        widths[max(left, key=lambda i: widths[i])] -= 1
    return [[_lines(cell, widths[i]) for i, cell in enumerate(cells)] for cells in table]


def _lines(cell: str, width: int) -> list[str]:
    return textwrap.wrap(cell, width, break_long_words=False, break_on_hyphens=False) or [""]


def _row(cells: Sequence[Sequence[str]], sides: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Return the lines of one row."""
    height = max(map(len, cells), default=0)
    padded = [[*lines, *[""] * (height - len(lines))] for lines in cells]
    columns = list(zip(padded, sides, widths, strict=True))
    return [" ".join(f"{lines[i]:{side}{width}}" for lines, side, width in columns).rstrip() for i in range(height)]
