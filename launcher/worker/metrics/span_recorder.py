"""Records what a rank does in some steps of a run: forward and backward by micro-batch, collectives, optimizer."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from launcher.layout import RankGrid
from launcher.planner.options import TrainOptions
from launcher.run.folder import RunFolder
from launcher.run.spans import RankSpans, Span

Mark = Any  # seconds of the clock, or an event of the GPU
Noted = tuple[str, Mark, Mark, int | None, int | None]
_NOTHING = nullcontext()


@dataclass
class SpanRecorder:
    """Notes spans in the steps that `step` is called with, and writes them afterwards, in a thread of its own.

    In all other steps a span costs one look at a flag. On a GPU spans are between two events on the current stream,
    as those of `Stopwatch`. Never run on a GPU.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    steps: tuple[int, ...] = ()
    rank: int = 0
    run_dir: Path = field(default_factory=Path)
    on: bool = False
    _noted: list[Noted] = field(default_factory=list)
    _writers: list[threading.Thread] = field(default_factory=list)

    @classmethod
    def of(
        cls, options: TrainOptions, *, grid: RankGrid, rank: int, device: torch.device, run_dir: Path
    ) -> SpanRecorder:
        """The recorder of a rank: of the steps in `train.spans`, if it is one of `train.span_ranks`."""
        chosen = rank in options.span_ranks if options.span_ranks else is_first_pipeline(grid, rank)
        return cls(device, options.spans if chosen else (), rank, run_dir)

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Record this step (counted from 1) if it is one of `steps`."""
        if number not in self.steps:
            yield
            return
        self._noted, self.on = [], True
        began_at, begin, first = time.time(), time.perf_counter(), self.mark()
        try:
            yield
        finally:
            self.on = False
        took = time.perf_counter() - begin
        noted = self._noted
        writer = threading.Thread(target=self._write, args=(number, began_at, took, first, noted), daemon=True)
        writer.start()
        self._writers.append(writer)

    def span(
        self, kind: str, *, stage: int | None = None, micro_batch: int | None = None
    ) -> AbstractContextManager[None]:
        """Note how long the block takes."""
        return self._span(kind, stage, micro_batch) if self.on else _NOTHING

    @contextmanager
    def _span(self, kind: str, stage: int | None, micro_batch: int | None) -> Iterator[None]:
        begin = self.mark()
        yield
        self.add(kind, begin, self.mark(), stage=stage, micro_batch=micro_batch)

    def add(
        self, kind: str, begin: Mark, end: Mark, *, stage: int | None = None, micro_batch: int | None = None
    ) -> None:
        """Note a span between two marks."""
        if self.on:
            self._noted.append((kind, begin, end, stage, micro_batch))

    def mark(self) -> Mark:
        """This moment, by the clock or on the GPU's stream."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def close(self) -> None:
        """Wait until all is written."""
        for writer in self._writers:
            writer.join()

    def _write(self, number: int, began_at: float, took: float, first: Mark, noted: list[Noted]) -> None:
        def since(mark: Mark) -> float:
            seconds: float = mark - first if isinstance(mark, float) else first.elapsed_time(mark) / 1e3
            return max(0.0, seconds)

        spans = tuple(Span(kind, since(begin), since(end), stage, mb) for kind, begin, end, stage, mb in noted)
        path = RunFolder(self.run_dir).span_file(step=number, rank=self.rank)
        try:
            RankSpans(self.rank, number, socket.gethostname(), began_at, took, spans).write(path)
        except OSError as error:
            print(f"the spans of step {number} were not written: {error}", file=sys.stderr, flush=True)


def is_first_pipeline(grid: RankGrid, rank: int) -> bool:
    """Whether a rank is in the first pipeline: it is the first of its group on every other axis."""
    return all(index == 0 for axis, index in grid.coordinate(rank).items() if axis != "pp")
