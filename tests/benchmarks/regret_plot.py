"""A picture of predicted against measured step times, as SVG: both axes by decades, the band within the error asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from math import ceil, floor, log10

SIZE, MARGIN = 560, 60
COLOURS = ("#1b6ca8", "#c8553d", "#2a7f3f", "#7a4fa3", "#8a6d1d", "#4a4a4a")
TICKS = (1, 2, 5)

Place = Callable[[float], float]
Points = Sequence[tuple[str, float, float]]  # layout, predicted and measured seconds


def picture(grids: Mapping[str, Points], *, band: float, title: str) -> str:
    """One colour for each grid; a line where predicted is measured, dashed ones where it is `band` off."""
    seconds = [value for points in grids.values() for _, *pair in points for value in pair]
    low, high = 0.8 * min(seconds), 1.25 * max(seconds)
    scale = (SIZE - 2 * MARGIN) / (log10(high) - log10(low))

    def place(value: float) -> float:
        return MARGIN + (log10(value) - log10(low)) * scale

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE} {SIZE + 24 * len(grids)}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{SIZE / 2}" y="24" text-anchor="middle" font-size="14">{escape(title)}</text>',
        *_axes(low, high, place),
    ]
    for factor, dash in ((1.0, ""), (1 + band, ' stroke-dasharray="4 4"'), (1 - band, ' stroke-dasharray="4 4"')):
        begin, end = max(low, low / factor), min(high, high / factor)
        ends = [(place(value), SIZE - place(value * factor)) for value in (begin, end)]
        (x1, y1), (x2, y2) = ends
        parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#999"{dash}/>')
    for i, (name, points) in enumerate(grids.items()):
        colour = COLOURS[i % len(COLOURS)]
        parts += [_point(place, point, colour, name) for point in points]
        y = SIZE + 24 * i + 4
        parts.append(f'<circle cx="{MARGIN}" cy="{y}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{MARGIN + 12}" y="{y + 4}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _point(place: Place, point: tuple[str, float, float], colour: str, name: str) -> str:
    layout, predicted, measured = point
    x, y = place(measured), SIZE - place(predicted)
    told = escape(f"{name}, {layout}: predicted {predicted * 1e3:.0f} ms, measured {measured * 1e3:.0f} ms")
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}" fill-opacity="0.75"><title>{told}</title></circle>'


def _axes(low: float, high: float, place: Place) -> list[str]:
    found = [
        f'<rect x="{MARGIN}" y="{MARGIN}" width="{SIZE - 2 * MARGIN}" height="{SIZE - 2 * MARGIN}" fill="none" '
        'stroke="#333"/>',
        f'<text x="{SIZE / 2}" y="{SIZE - 16}" text-anchor="middle">measured, ms</text>',
        f'<text x="16" y="{SIZE / 2}" text-anchor="middle" transform="rotate(-90 16 {SIZE / 2})">predicted, ms</text>',
    ]
    for decade in range(floor(log10(low)), ceil(log10(high)) + 1):
        for tick in (times * 10.0**decade for times in TICKS):
            if low <= tick <= high:
                at, label = place(tick), f"{tick * 1e3:g}"
                found.append(f'<text x="{at:.1f}" y="{SIZE - MARGIN + 16}" text-anchor="middle">{label}</text>')
                found.append(f'<text x="{MARGIN - 6}" y="{SIZE - at + 4:.1f}" text-anchor="end">{label}</text>')
    return found
