"""Time to save and restore a checkpoint: ours, with checksums, against plain torch.distributed.checkpoint.

    python tests/benchmarks/checkpoint_time.py [--ranks 2] [--mib 256] [--repeats 5]

Each rank has so many MiB of parameters of its own in two dozen tensors. The ways take turns on the same state, over
gloo, in a folder of /tmp. Reported: medians of wall and CPU seconds of rank 0, and ours over plain; `asynchronous` is
how long the call of an asynchronous save holds the training up. The last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch import Tensor

from launcher.config.compose import load
from launcher.layout import Layout
from launcher.planner.options import TrainOptions
from launcher.planner.record import Plan
from launcher.rendezvous.config import free_port
from launcher.worker.checkpoint.saver import CheckpointManager

TENSORS = 24


def rank_state(rank: int, mib: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rank)
    size = mib * 2**20 // 4 // TENSORS
    return {f"rank{rank}.{i}": torch.rand(size, generator=generator) for i in range(TENSORS)}


class Ways:
    """Each way to save and to restore; every call is collective."""

    def __init__(self, folder: Path, rank: int, mib: int, ranks: int) -> None:
        self.folder, self.rank, self.step = folder, rank, 0
        self.state = rank_state(rank, mib)
        job = load([f"cluster.node.num_gpus={ranks}"]).job
        plan = Plan(job, Layout(tp=1, pp=1, dp=ranks), {}, ())
        self.ours = CheckpointManager(folder / "ours", plan=plan, options=options(asynchronous=False))
        self.behind = CheckpointManager(folder / "behind", plan=plan, options=options(asynchronous=True))

    def save_ours(self) -> None:
        self.step += 1
        self.ours.save(self.step, {"model": self.state})

    def save_behind(self) -> None:
        self.step += 1
        self.behind.save(self.step, {"model": self.state})

    def save_plain(self) -> None:
        dcp.save({"model": self.state}, checkpoint_id=self.folder / "plain")

    def restore_ours(self) -> None:
        assert self.ours.restore({"model": self.state})

    def restore_plain(self) -> None:
        dcp.load({"model": self.state}, checkpoint_id=self.folder / "plain")


def options(*, asynchronous: bool) -> TrainOptions:
    return TrainOptions(checkpoint_every=1, checkpoint_async=asynchronous, keep_last=1)


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Wall and CPU seconds of this rank until all ranks are through."""
    dist.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    dist.barrier()
    return time.perf_counter() - wall, time.process_time() - cpu


def run(rank: int, folder: str, arguments: argparse.Namespace, port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=arguments.ranks)
    ways = Ways(Path(folder), rank, arguments.mib, arguments.ranks)
    before = {name: tensor.clone() for name, tensor in ways.state.items()}
    every = {
        "save plain": ways.save_plain, "save ours": ways.save_ours, "save asynchronous": ways.save_behind,
        "restore plain": ways.restore_plain, "restore ours": ways.restore_ours,
    }  # fmt: skip
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in every}
    for repeat in range(arguments.repeats + 1):
        for name, work in every.items():
            if name.startswith("restore"):
                for tensor in ways.state.values():
                    tensor.zero_()
            seconds = timed(work)
            found[name] += [seconds] if repeat else []
            ways.behind.wait()
            assert all(torch.equal(tensor, before[key]) for key, tensor in ways.state.items()), name
    if rank == 0:
        report(found)
    dist.destroy_process_group()


def report(found: dict[str, list[tuple[float, float]]]) -> None:
    medians = {name: (median(w for w, _ in runs), median(c for _, c in runs)) for name, runs in found.items()}
    document = {}
    for name, (wall, cpu) in medians.items():
        base = medians[f"{name.split()[0]} plain"]
        document[name] = {"wall_s": wall, "cpu_s": cpu, "wall_ratio": wall / base[0], "cpu_ratio": cpu / base[1]}
        print(f"{name:18} wall {wall:6.3f} s ({wall / base[0]:4.2f} ×)  CPU {cpu:6.3f} s ({cpu / base[1]:4.2f} ×)")
    print(json.dumps(document), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--mib", type=int, default=256, help="of each rank")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    folder = tempfile.mkdtemp()
    try:
        mp.spawn(run, args=(folder, arguments, free_port("127.0.0.1")), nprocs=arguments.ranks)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
