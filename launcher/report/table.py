"""Columns of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LEFT, RIGHT = "<", ">"
BOLD, PLAIN = "\x1b[1m", "\x1b[0m"


def draw(columns: Mapping[str, str], rows: Sequence[Sequence[str]], *, bold: bool = False) -> list[str]:
    """A line of names, then one for each row. `columns`: name → side (LEFT or RIGHT); `bold` for a terminal."""
    names = list(columns)
    widths = [max(len(cell) for cell in cells) for cells in zip(names, *rows, strict=True)]
    sides = list(columns.values())

    def line(cells: Sequence[str]) -> str:
        padded = [f"{cell:{side}{width}}" for cell, side, width in zip(cells, sides, widths, strict=True)]
        return " ".join(padded).rstrip()

    header = line(names)
    return [f"{BOLD}{header}{PLAIN}" if bold else header, *map(line, rows)]
