"""The named rank grid: rank ↔ coordinate, and the groups of each axis. Plain integer arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod

from launcher.layout.degrees import Layout, checked_axis_order


@dataclass(frozen=True)
class RankGrid:
    """Ranks 0 … size-1 laid out over named axes; `axes[0]` varies fastest with the rank.

    `ep` is not a separate axis: an expert group is `ep` neighbours along `dp`.
    """

    axes: tuple[str, ...]
    degrees: tuple[int, ...]
    ep: int = 1

    @classmethod
    def of(cls, layout: Layout) -> RankGrid:
        """Return the grid of a layout, with axes in its `axis_order`."""
        axes = tuple(layout.axis_order.split("-"))
        return cls(axes, tuple(layout.degree(axis) for axis in axes), layout.ep)

    @cached_property
    def size(self) -> int:
        return prod(self.degrees)

    @cached_property
    def strides(self) -> dict[str, int]:
        """Distance in rank between neighbours along each axis."""
        strides = {axis: prod(self.degrees[:i]) for i, axis in enumerate(self.axes)}
        return strides | ({"ep": strides["dp"]} if "dp" in strides else {})

    def degree(self, axis: str) -> int:
        return self.ep if axis == "ep" else self.degrees[self.axes.index(axis)]

    def coordinate(self, rank: int) -> dict[str, int]:
        """Return the coordinate of `rank` along every axis."""
        return {axis: rank // self.strides[axis] % degree for axis, degree in zip(self.axes, self.degrees, strict=True)}

    def rank(self, **coordinate: int) -> int:
        """Return the rank at a coordinate; omitted axes are 0."""
        return sum(self.strides[axis] * index for axis, index in coordinate.items())

    def group(self, axis: str, rank: int) -> tuple[int, ...]:
        """Return the ranks that differ from `rank` only along `axis`, in axis order."""
        stride, degree = self.strides[axis], self.degree(axis)
        first = rank - (rank // stride % degree) * stride
        return tuple(range(first, first + degree * stride, stride))

    def groups(self, axis: str) -> Iterator[tuple[int, ...]]:
        """Yield every group of `axis`, by first rank; together they partition the world."""
        stride = self.strides[axis]
        for block in range(0, self.size, stride * self.degree(axis)):
            for first in range(block, block + stride):
                yield self.group(axis, first)


def axis_order_problem(axis_order: str) -> str | None:
    """Return the problem of an axis order, or None."""
    try:
        checked_axis_order(axis_order)
    except ValueError as error:
        return f"layout.axis_order={axis_order!r} {error}"
    return None
