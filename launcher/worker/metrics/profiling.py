"""torch profiler traces of chosen steps on chosen ranks, into the run folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from launcher.planner.options import TrainOptions
from launcher.run.folder import RunFolder


@contextmanager
def profiled(step: int, *, rank: int, options: TrainOptions, run_dir: Path) -> Iterator[Path | None]:
    """Trace what runs inside if `step` (counted from 1) and `rank` are to be profiled; gives the file it will write.

    The file is Chrome's trace format, for chrome://tracing or ui.perfetto.dev.
    """
    if step not in options.profile or rank not in options.profile_ranks:
        yield None
        return
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    path = RunFolder(run_dir).trace(step=step, rank=rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    with profile(activities=activities) as trace:
        yield path
    temporary = path.with_name(f".{path.name}")
    trace.export_chrome_trace(str(temporary))
    temporary.replace(path)
