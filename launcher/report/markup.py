"""Generates HTML from values: tables, bars, tiles, scatter plots. All external text is escaped here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

ASSETS = files("launcher.report") / "assets"


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

    head = "".join(cell("th", i, name) for i, name in enumerate(columns))
    body = "".join(
        f"<tr{' class=chosen' if n == chosen else ''}>{''.join(cell('td', i, word) for i, word in enumerate(row))}</tr>"
        for n, row in enumerate(rows)
    )
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def bars(values: Mapping[str, tuple[float, str]]) -> str:
    """Return horizontal bars: name → (length, words), in the given order."""
    top = max((length for length, _ in values.values()), default=0.0) or 1.0
    rows = [_bar(name, _fill(100 * length / top, "var(--c0)"), words) for name, (length, words) in values.items()]
    return f'<div class="bars">{"".join(rows)}</div>' if rows else ""


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
    """One point of a scatter plot, with its text."""

    x: float
    y: float
    words: str
    chosen: bool = False


def scatter(dots: Sequence[Dot], *, x: str, y: str, label: str) -> str:
    """Return dots between the smallest and largest value of each axis; each can be focused."""
    if len(dots) < 2:
        return ""
    (left, right), (low, high) = _range([dot.x for dot in dots]), _range([dot.y for dot in dots])
    # The dots keep off the axes, where the labels are.
    marks = []
    for dot in sorted(dots, key=lambda dot: dot.chosen):
        cx, cy = 74 + 600 * (dot.x - left) / (right - left), 206 - 172 * (dot.y - low) / (high - low)
        colour, radius = ("var(--c1)", 8) if dot.chosen else ("var(--c0)", 5)
        marks.append(
            f'<circle class="dot" tabindex="0" cx="{cx:.1f}" cy="{cy:.1f}" r="{radius}" fill="{colour}" '
            f'data-words="{escape(dot.words)}"><title>{escape(dot.words)}</title></circle>'
        )
    words = [
        f'<text class="dim" x="74" y="240" text-anchor="middle">{left:.3g}</text>',
        f'<text class="dim" x="690" y="240" text-anchor="end">{right:.3g} {escape(x)}</text>',
        f'<text class="dim" x="54" y="38" text-anchor="end">{high:.3g}</text>',
        f'<text class="dim" x="54" y="210" text-anchor="end">{low:.3g}</text>',
        f'<text class="dim" x="60" y="12">{escape(y)}</text>',
        '<path d="M60 18V220H690" fill="none" stroke="var(--line)"/>',
    ]
    svg = f'<svg role="group" aria-label="{escape(label)}" viewBox="0 0 700 250" width="700" style="min-width:34rem">'
    return f'<div class="scroll">{svg}{"".join(words)}{"".join(marks)}</svg></div>'


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5 * abs(low or 1.0), high + 0.5 * abs(high or 1.0))


def details(summary: str, body: str) -> str:
    """Return a collapsed section."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"
