"""A pipeline schedule as boxes in time, by the rules of the schedule.

Sources: GPipe (Huang et al. 2019), 1F1B and interleaved 1F1B (Narayanan et al. 2021, section 2.2),
ZB-H1 (Qi et al. 2023, section 2: the backward pass split in input and weight gradients).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One task of a pipeline rank: `kind` is F, B (whole backward or input gradients) or W."""

    kind: str
    stage: int
    micro_batch: int


@dataclass(frozen=True)
class Box:
    """A task with its rank and time, in units of one stage's forward time."""

    rank: int
    task: Task
    start: float
    end: float


def timeline(
    schedule: str, *, pp: int, virtual_stages: int, num_micro_batches: int, backward: float = 2.0
) -> tuple[Box, ...]:
    """Return every box of a step; a stage's forward takes 1 / virtual_stages, its backward `backward` times that."""
    orders = [_order(schedule, rank, pp, virtual_stages, num_micro_batches) for rank in range(pp)]
    return _place(
        orders, pp=pp, num_stages=pp * virtual_stages, durations=_durations(schedule, virtual_stages, backward)
    )


def _durations(schedule: str, virtual_stages: int, backward: float) -> dict[str, float]:
    unit = 1.0 / virtual_stages
    if schedule == "zb_h1":
        return {"F": unit, "B": backward * unit / 2, "W": backward * unit / 2}
    return {"F": unit, "B": backward * unit, "W": 0.0}


def _order(schedule: str, rank: int, pp: int, virtual_stages: int, count: int) -> list[Task]:
    """Return the tasks of one rank in execution order."""
    if schedule == "gpipe":
        return [Task(kind, rank, m) for kind in "FB" for m in range(count)]
    if virtual_stages > 1:
        return _interleaved(rank, pp, virtual_stages, count)
    warmup = min(pp - rank - 1, count)
    tasks = [Task("F", rank, m) for m in range(warmup)]
    for m in range(count):
        tasks += [Task("F", rank, warmup + m)] if warmup + m < count else []
        tasks.append(Task("B", rank, m))
        if schedule == "zb_h1" and m >= rank:  # later ranks hold fewer activations and may delay weight gradients
            tasks.append(Task("W", rank, m - rank))
    if schedule == "zb_h1":
        tasks += [Task("W", rank, m) for m in range(max(0, count - rank), count)]
    return tasks


def _interleaved(rank: int, pp: int, virtual_stages: int, count: int) -> list[Task]:
    """Return micro-batches in groups of pp; within a group, each chunk of the rank in turn."""
    total = count * virtual_stages
    warmup = min((pp - rank - 1) * 2 + (virtual_stages - 1) * pp, total)

    def task(kind: str, index: int) -> Task:
        group, inside = divmod(index, pp * virtual_stages)
        chunk = inside // pp if kind == "F" else virtual_stages - 1 - inside // pp
        return Task(kind, chunk * pp + rank, group * pp + inside % pp)

    tasks = [task("F", i) for i in range(warmup)]
    for i in range(total - warmup):
        tasks += [task("F", warmup + i), task("B", i)]
    return tasks + [task("B", i) for i in range(total - warmup, total)]


def _needs(task: Task, num_stages: int) -> tuple[Task, ...]:
    """Return the tasks that must end before `task` can start."""
    if task.kind == "W":
        return (Task("B", task.stage, task.micro_batch),)
    if task.kind == "F":
        return (Task("F", task.stage - 1, task.micro_batch),) if task.stage else ()
    own = Task("F", task.stage, task.micro_batch)
    later = Task("B", task.stage + 1, task.micro_batch)
    return (own, later) if task.stage + 1 < num_stages else (own,)


def _place(
    orders: Sequence[Sequence[Task]], *, pp: int, num_stages: int, durations: dict[str, float]
) -> tuple[Box, ...]:
    """Schedule every rank's tasks as early as their dependencies allow."""
    ended: dict[Task, float] = {}
    clock, position = [0.0] * pp, [0] * pp
    boxes: list[Box] = []
    moved = True
    while moved:
        moved = False
        for rank, order in enumerate(orders):
            while position[rank] < len(order) and all(n in ended for n in _needs(order[position[rank]], num_stages)):
                task = order[position[rank]]
                start = max([clock[rank], *(ended[n] for n in _needs(task, num_stages))])
                ended[task] = clock[rank] = start + durations[task.kind]
                boxes.append(Box(rank, task, start, clock[rank]))
                position[rank] += 1
                moved = True
    if len(boxes) != sum(len(order) for order in orders):
        raise ValueError("the schedule waits for itself: its order is not one that a pipeline can run")
    return tuple(boxes)
