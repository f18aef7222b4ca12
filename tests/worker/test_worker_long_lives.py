"""Runs one after the other in one process, as in `launcher tune` or a notebook: a rank is as it was before."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from process_state import left_behind, process_state
from ranks import TINY, make_plan, run_ranks
from training import make_engine, steps

from launcher import process
from launcher.fast_exit import wait_for_native_threads
from launcher.layout import Layout
from launcher.planner.options import TrainOptions
from launcher.worker.checkpoint.saver import CheckpointManager
from launcher.worker.metrics.report import forget_peak_memory, peak_memory_bytes
from launcher.worker.stop import Pulse

OPTIONS = TrainOptions(**{**vars(TrainOptions()), "checkpoint_every": 1})
CPU = torch.device("cpu")


def run(folder: Path, layout: Layout, rank: int, *, resumed: int = 0) -> list[float]:
    """Two steps in a world of their own, as in the recipe tune, from the checkpoint of the folder to the next."""
    if dist.is_initialized():
        dist.barrier()  # the other rank has connected, too
        dist.destroy_process_group()
    store = dist.FileStore(str(folder.with_name(f"store-{folder.name}-{resumed}")), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    curve = trained(folder, layout, rank, resumed=resumed)
    dist.destroy_process_group()
    wait_for_native_threads()  # of gloo, which what is freed next may join
    gc.collect()
    return curve


def trained(folder: Path, layout: Layout, rank: int, *, resumed: int) -> list[float]:
    engine, axes = make_engine(layout, rank, options=OPTIONS, model=TINY, optimizer="adamw")
    manager = CheckpointManager(folder, plan=make_plan(layout, model=TINY), options=OPTIONS)
    assert manager.restore(engine.state(loading=True)) == resumed
    pulse = Pulse()
    curve = steps(engine, axes, range(resumed, resumed + 2), model=TINY, lr=1e-2)
    pulse.step_done(resumed + 2, step_s=0.1)
    manager.save(resumed + 2, engine.state(loading=False))
    manager.close()
    pulse.close()
    return [loss for loss, _ in curve]


@pytest.mark.slow
def test_two_runs_of_one_process_neither_change_it_nor_each_other(tmp_path: Path) -> None:
    whole, sharded = Layout(tp=1, pp=1, dp=2), Layout(tp=1, pp=1, dp=2, zero_stage=1)

    def body(rank: int) -> dict[str, Any]:
        # Before: what a first run imports. Torch's own: a hook of each world, and sockets of the last until the next.
        first = run(tmp_path / "first", whole, rank)
        torch.manual_seed(1)
        before = process_state()
        again, other = run(tmp_path / "again", whole, rank), run(tmp_path / "other", sharded, rank)
        resumed = run(tmp_path / "other", sharded, rank, resumed=2)
        left = {
            n: str(change) for n, change in left_behind(before).items() if not n.startswith(("descriptor", "hooks"))
        }
        return {"curves": [first, again, other, resumed], "left": left}

    found = run_ranks(2, body)
    for one in found:
        first, again, other, resumed = one["curves"]
        assert first == again == pytest.approx(other) and len(resumed) == 2
        assert not one["left"]


def test_a_peak_of_memory_is_that_of_the_run_alone() -> None:
    held = np.ones(16 << 20)  # 128 MiB
    high = peak_memory_bytes(CPU)
    del held
    assert peak_memory_bytes(CPU) > high - (16 << 20)  # the kernel counts in steps
    forget_peak_memory(CPU)
    if peak_memory_bytes(CPU) > high - (16 << 20):
        pytest.skip("this kernel does not begin a new peak")
    assert peak_memory_bytes(CPU) < high - (64 << 20)
    assert process.peak_resident_bytes() == peak_memory_bytes(CPU)
