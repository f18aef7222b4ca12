"""Generates HTML from values: tables, bars, tiles, scatter plots. All external text is escaped here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

ASSETS = files("launcher.report") / "assets"
LONG = 14  # characters of a row's name: longer ones keep some width on a narrow screen


def asset(name: str) -> str:
    """Return a file that is embedded in every page."""
    return (ASSETS / name).read_text(encoding="utf-8")


def document(title: str, body: Sequence[str], facts: Mapping[str, Any]) -> str:
    """Return a whole page: one file without external resources."""
    data = json.dumps(facts, allow_nan=False, separators=(",", ":")).replace("</", "<\\/")
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title>'
        f"<style>{asset('uPlot.min.css')}{asset('style.css')}</style>"
    )
    script = f'<script type="application/json" id="facts">{data}</script>'
    code = f"<script>{asset('uPlot.iife.min.js')}</script><script>{asset('page.js')}</script>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}{script}{code}</body></html>\n'


def section(title: str, *parts: str) -> str:
    """Return a titled part of the page; empty if there is nothing to show."""
    body = "".join(parts)
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def paragraph(words: str, *, dim: bool = False) -> str:
    return f"<p{' class=dim' if dim else ''}>{escape(words)}</p>"


def bullets(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


@dataclass(frozen=True)
class Tile:
    """One headline number. `tone`: good, bad or empty."""

    label: str
    value: str
    note: str = ""
    tone: str = ""


def tiles(found: Iterable[Tile]) -> str:
    cells = [
        f'<div class="tile"><span>{escape(tile.label)}</span><b class="{tile.tone}">{escape(tile.value)}</b>'
        f"<span>{escape(tile.note)}</span></div>"
        for tile in found
    ]
    return f'<div class="tiles">{"".join(cells)}</div>'


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = (), chosen: int | None = None
) -> str:
    """Return a table. `numbers`: right-aligned columns; `chosen`: the highlighted row."""
    if not rows:
        return ""

    def cell(tag: str, index: int, words: str) -> str:
        return f"<{tag}{' class=n' if index in numbers else ''}>{escape(words)}</{tag}>"

    head = "".join(cell("th" if name else "td", i, name) for i, name in enumerate(columns))
    body = "".join(
        f"<tr{' class=chosen' if n == chosen else ''}>{''.join(cell('td', i, word) for i, word in enumerate(row))}</tr>"
        for n, row in enumerate(rows)
    )
    long = any(len(row[0]) > LONG for row in rows)
    start = f'<div class="scroll{" named" if long else ""}" tabindex="0">'
    return f"{start}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def bars(values: Mapping[str, tuple[float, str]]) -> str:
    """Return horizontal bars: name → (length, words), in the given order."""
    top = max((length for length, _ in values.values()), default=0.0) or 1.0
    rows = [_bar(name, _fill(100 * length / top, "var(--c0)"), words) for name, (length, words) in values.items()]
    return f'<div class="bars">{"".join(rows)}</div>' if rows else ""


def facing(rows: Mapping[str, Sequence[tuple[str, float, str]]]) -> str:
    """Return bars of several sides below each other: name → (side, length, words) of each, sides in their colours."""
    top = max((length for sides in rows.values() for _, length, _ in sides), default=0.0) or 1.0
    lines = [
        _bar(name if i == 0 else "", _fill(100 * length / top, f"var(--c{i})"), f"{side} {words}")
        for name, sides in rows.items()
        for i, (side, length, words) in enumerate(sides)
    ]
    return f'<div class="bars">{"".join(lines)}</div>'


def stacked(rows: Mapping[str, Mapping[str, float]], *, limit: float, words: Mapping[str, str]) -> str:
    """Return one stacked bar per row, with a legend of the parts; `limit` is the length of the whole track."""
    names = list(dict.fromkeys(name for parts in rows.values() for name, value in parts.items() if value > 0))
    colours = {name: f"var(--c{i % 8})" for i, name in enumerate(names)}
    top = max([limit, *(sum(parts.values()) for parts in rows.values())]) or 1.0
    lines = [
        _bar(row, "".join(_fill(100 * parts.get(name, 0.0) / top, colours[name]) for name in names), words[row])
        for row, parts in rows.items()
    ]
    legend = [
        f'<span><i style="background:{colours[name]}"></i>{escape(name.replace("_", " "))}</span>' for name in names
    ]
    return f'<div class="bars">{"".join(lines)}</div><div class="legend">{"".join(legend)}</div>'


def _bar(name: str, fills: str, words: str) -> str:
    track = f'<div class="track">{fills}</div>'
    return f'<div class="bar"><span>{escape(name)}</span>{track}<span>{escape(words)}</span></div>'


def _fill(percent: float, colour: str) -> str:
    return f'<div class="fill" style="width:{percent:.2f}%;background:{colour}"></div>'


@dataclass(frozen=True)
class Dot:
    """One point of a scatter plot, with its text. `kind`: a class of its style; the first kinds are drawn first."""

    x: float
    y: float
    words: str
    kind: str = "fits"


DOTS = ("misfit", "fits", "chosen")


def scatter(dots: Sequence[Dot], *, x: Axis, y: Axis, label: str, limit: float | None = None) -> str:
    """Return dots, each of which can be focused. `limit`: a line across, if it is in the range of `y`."""
    if len(dots) < 2:
        return ""
    left, right = _range([dot.x for dot in dots])
    low, high = _range([dot.y for dot in dots])

    def across(value: float) -> float:
        return 100 * (value - left) / (right - left)

    def up(value: float) -> float:
        return 100 * (value - low) / (high - low)

    marks = [
        f'<button type="button" class="dot {dot.kind}" style="left:{across(dot.x):.2f}%;bottom:{up(dot.y):.2f}%" '
        f'aria-label="{escape(dot.words)}" data-words="{escape(dot.words)}"></button>'
        for dot in sorted(dots, key=lambda dot: DOTS.index(dot.kind))
    ]
    grid = [
        f'<i class="level" style="bottom:{25 * i}%"></i>'
        f'<span class="tick" style="bottom:{25 * i}%">{escape(y.words(low + (high - low) * i / 4))}</span>'
        for i in range(5)
    ]
    if limit is not None and low <= limit <= high:
        grid.append(f'<i class="level limit" style="bottom:{up(limit):.2f}%"></i>')
    ends = f"<span>{escape(x.words(left))}</span><span>{escape(x.name)}</span><span>{escape(x.words(right))}</span>"
    return (
        f'<figure class="plot"><figcaption>{escape(y.name)}</figcaption><div class="area" role="group" '
        f'aria-label="{escape(label)}">{"".join(grid)}{"".join(marks)}</div><div class="ends">{ends}</div></figure>'
    )


@dataclass(frozen=True)
class Axis:
    """A plot's axis: its name, and the words for a value."""

    name: str
    words: Callable[[float], str]


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis: a little more than the values, so that the dots keep off its ends."""
    low, high = min(values), max(values)
    spare = 0.06 * (high - low) or 0.5 * abs(low or 1.0)
    return low - spare, high + spare


def details(summary: str, body: str) -> str:
    """Return a collapsed section."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"
