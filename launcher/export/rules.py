"""Reasons against a layout that several tools share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from launcher.layout import Layout
from launcher.layout.job import Job


def order_unknown(layout: Layout, *, tool: str, known: Sequence[str]) -> Iterator[str]:
    """Return a problem if a tool numbers its ranks in another order than the plan; axes of one rank do not matter."""
    if effective(layout, layout.axis_order) not in [effective(layout, order) for order in known]:
        allowed = " or ".join(f"layout.axis_order={order}" for order in known)
        yield f"{tool} numbers ranks by {' or '.join(known)}, not by {layout.axis_order}: set {allowed}"


def effective(layout: Layout, order: str) -> tuple[str, ...]:
    """The axes of an order that have more than one rank, fastest first."""
    return tuple(axis for axis in order.split("-") if layout.degree(axis) > 1)


def only(job: Job, layout: Layout, *, tool: str, why: str, **allowed: object) -> Iterator[str]:
    """A reason for each key that has another value than the allowed one."""
    for key, value in allowed.items():
        found = getattr(layout, key)
        if found != value:
            yield f"{tool} {why}: layout.{key}={plain(found)} cannot be said there, set layout.{key}={plain(value)}"


def plain(value: object) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return "[" + ",".join(map(str, value)) + "]" if isinstance(value, tuple | list) else str(value)
