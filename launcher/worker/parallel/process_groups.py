"""Timed collectives over the ranks of one axis."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from launcher.worker.metrics.span_recorder import SpanRecorder
from launcher.worker.parallel.torch_names import all_gather_single, reduce_scatter_single


class Stopwatch:
    """Adds up the seconds that the device spends in its blocks, which must not nest.

    On a CPU by the clock, where collectives block. On a GPU by two events on the current stream, which waits for the
    collective's: read at the end of the step, they cost no synchronisation. With a recorder, each block is a span.
    """

    def __init__(
        self, device: torch.device | None = None, *, recorder: SpanRecorder | None = None, kind: str = ""
    ) -> None:
        self._recorder, self._kind = recorder, kind
        self._on_gpu = device is not None and device.type == "cuda"
        self._seconds = 0.0
        self._begin: Any = None
        self._events: list[tuple[Any, Any]] = []

    def __enter__(self) -> None:
        self._begin = self._event() if self._on_gpu else time.perf_counter()

    def __exit__(self, *error: object) -> None:
        end = self._event() if self._on_gpu else time.perf_counter()
        if self._on_gpu:
            self._events.append((self._begin, end))
        else:
            self._seconds += end - self._begin
        if self._recorder is not None:
            self._recorder.add(self._kind, self._begin, end)

    def take(self) -> float:
        """The seconds since the last call; on a GPU after it was synchronised."""
        seconds: float = self._seconds + sum(begin.elapsed_time(end) for begin, end in self._events) / 1e3
        self._seconds, self._events = 0.0, []
        return seconds

    @staticmethod
    def _event() -> Any:
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


@dataclass(frozen=True)
class ProcessGroup:
    """A process group with timed collectives."""

    group: dist.ProcessGroup
    watch: Stopwatch = field(default_factory=Stopwatch)

    @property
    def size(self) -> int:
        return self.group.size()

    @property
    def rank(self) -> int:
        """This rank's index in the group."""
        return self.group.rank()

    def all_reduce(self, tensor: Tensor, op: Any = dist.ReduceOp.SUM) -> None:
        """All-reduce in place."""
        with self.watch:
            dist.all_reduce(tensor, op=op, group=self.group)

    def all_gather(self, part: Tensor) -> Tensor:
        """(peers, …) of every peer's part (…)."""
        parts = part.new_empty(self.size, *part.shape)
        with self.watch:
            all_gather_single(parts.flatten(0, 1), part.contiguous(), group=self.group)
        return parts

    def reduce_scatter(self, parts: Tensor) -> Tensor:
        """(…), this rank's part of the sum over peers of (peers, …), which is contiguous."""
        mine = parts.new_empty(parts.shape[1:])
        with self.watch:
            reduce_scatter_single(mine, parts.flatten(0, 1), group=self.group)
        return mine
