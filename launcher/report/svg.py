"""Small SVG drawings for the report: the ranks on their nodes, the pipeline in time, bars, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from launcher.layout import Placement
from launcher.report.timeline import Box

HUES = (212, 28, 140, 268, 340, 60, 180, 100)  # one a pipeline stage, in turn
KIND_COLOURS = {"F": "#5b8ff9", "B": "#5ad8a6", "W": "#f6bd16"}
MAX_NODES = 16
MAX_MICRO_BATCHES = 24


def _rect(x: float, y: float, width: float, height: float, fill: str, title: str = "") -> str:
    shape = f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="3" fill="{fill}"'
    return f"{shape}><title>{escape(title)}</title></rect>" if title else f"{shape}/>"


def _text(x: float, y: float, words: str, *, size: int = 11, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(words)}</text>'


def _svg(width: float, height: float, parts: Sequence[str], label: str) -> str:
    return (
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}">{"".join(parts)}</svg>'
    )


def placement_svg(placement: Placement, hosts: Sequence[str] = ()) -> str:
    """Nodes as rows, NVSwitch domains as frames, GPUs as cells: rank, tp index, pipeline stage as the colour."""
    node, cell, gap = placement.cluster.node, 46, 10
    shown = min(placement.num_nodes, MAX_NODES)
    parts: list[str] = []
    for index in range(shown):
        y = 8 + index * (cell + 16)
        parts.append(_text(0, y + cell / 2 + 4, hosts[index] if index < len(hosts) else f"node {index}"))
        x = 110.0
        for domain in node.domains:
            width = len(domain) * cell + 4
            parts.append(_rect(x, y - 4, width, cell + 4, "#e8ebf0"))
            parts += [_gpu_cell(placement, index, gpu, x + 4 + i * cell, y, cell) for i, gpu in enumerate(domain)]
            x += width + gap
    height = 16 + shown * (cell + 16)
    if placement.num_nodes > shown:
        parts.append(_text(0, height + 4, f"… and {placement.num_nodes - shown} more nodes in the same pattern"))
    width = 120 + node.num_gpus * cell + len(node.domains) * (gap + 4)
    return _svg(width, height + 12, parts, "ranks on their nodes and GPUs")


def _gpu_cell(placement: Placement, node: int, gpu: int, x: float, y: float, cell: float) -> str:
    rank = placement.rank_at(node=node, gpu=gpu)
    if rank >= placement.grid.size:
        return _rect(x, y, cell - 4, cell - 4, "#ffffff", f"GPU {gpu}: idle")
    at = placement.grid.coordinate(rank)
    hue = HUES[at["pp"] % len(HUES)]
    light = 82 - 22 * at["tp"] / max(1, placement.grid.degree("tp"))
    place = " ".join(f"{axis}{index}" for axis, index in at.items())
    return (
        _rect(x, y, cell - 4, cell - 4, f"hsl({hue} 70% {light:.0f}%)", f"rank {rank} on GPU {gpu}: {place}")
        + _text(x + (cell - 4) / 2, y + 17, str(rank), anchor="middle")
        + _text(x + (cell - 4) / 2, y + 33, f"p{at['pp']} d{at['dp']}", size=9, anchor="middle")
    )


def timeline_svg(boxes: Sequence[Box], *, pp: int) -> str:
    """A step of the pipeline: one row a rank, forward, backward and weight-gradient boxes in time."""
    end = max(box.end for box in boxes)
    scale, row = min(40.0, 1000 / end), 22
    parts = [_text(0, 8 + rank * row + 14, f"stage {rank}") for rank in range(pp)]
    for box in boxes:
        name = f"{box.task.kind} micro-batch {box.task.micro_batch}, stage {box.task.stage}"
        width = (box.end - box.start) * scale
        parts.append(
            _rect(
                60 + box.start * scale,
                8 + box.rank * row,
                max(0.5, width - 1),
                row - 4,
                KIND_COLOURS[box.task.kind],
                name,
            )
        )
        if width > 14:
            parts.append(
                _text(
                    60 + box.start * scale + width / 2,
                    8 + box.rank * row + 13,
                    str(box.task.micro_batch),
                    size=9,
                    anchor="middle",
                )
            )
    return _svg(70 + end * scale, 14 + pp * row, parts, "pipeline schedule")


def bars_svg(values: Mapping[str, float], labels: Mapping[str, str]) -> str:
    """Horizontal bars, one a key, with its own words for the value."""
    top = max(values.values(), default=0.0) or 1.0
    parts: list[str] = []
    for i, (name, value) in enumerate(values.items()):
        y = 4 + i * 20
        parts += [
            _text(0, y + 13, name.replace("_", " ")),
            _rect(170, y, 420 * value / top, 16, "#5b8ff9"),
            _text(176 + 420 * value / top, y + 13, labels[name]),
        ]
    return _svg(760, 8 + 20 * len(values), parts, "breakdown")


def curve_svg(points: Sequence[tuple[float, float]], *, name: str) -> str:
    """One line over the steps of a run."""
    if len(points) < 2:
        return f"<p>{escape(name)}: too few points to draw.</p>"
    (left, right), (low, high) = (points[0][0], points[-1][0]), (min(y for _, y in points), max(y for _, y in points))
    spread_x, spread_y = (right - left) or 1.0, (high - low) or 1.0
    path = " ".join(f"{50 + 650 * (x - left) / spread_x:.1f},{170 - 150 * (y - low) / spread_y:.1f}" for x, y in points)
    parts = [
        f'<polyline points="{path}" fill="none" stroke="#5b8ff9" stroke-width="2"/>',
        _text(44, 24, f"{high:.4g}", anchor="end"),
        _text(44, 174, f"{low:.4g}", anchor="end"),
        _text(50, 190, f"step {left:.0f}"),
        _text(700, 190, f"step {right:.0f}", anchor="end"),
    ]
    return _svg(760, 196, parts, name)
