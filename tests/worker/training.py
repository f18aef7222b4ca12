"""Short training runs of tiny models inside forked ranks: the losses and norms of every step."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import make_plan, run_each

from launcher.layout import Layout
from launcher.model import Model
from launcher.planner.options import TrainOptions
from launcher.planner.record import RunOptions
from launcher.worker.data.batches import Batch
from launcher.worker.engines.choose import build_engine
from launcher.worker.engines.engine import Engine, EngineContext
from launcher.worker.parallel.mesh import Axes, build_mesh

# Large enough that a wrong average or a wrong clip shows in the loss at once; clipping is active at every step.
SGD = TrainOptions(lr=0.3, momentum=0.9, grad_clip=0.5, lr_schedule="constant", warmup_steps=0)
ADAMW = TrainOptions(lr=1e-2, grad_clip=0.5, lr_schedule="constant", warmup_steps=0)
OPTIONS = {"sgd": SGD, "adamw": ADAMW}
Curve = list[tuple[float, float | None]]  # (loss, grad norm) of every step


def import_deepspeed() -> None:
    """Before the forks: 1.3 s of CPU and more in each rank otherwise. Skips the test where there is none."""
    pytest.importorskip("deepspeed")
    import deepspeed.runtime.zero.muon.original_muon  # noqa: F401


def random_batch(axes: Axes, *, model: Model, global_batch: int, step: int) -> Batch:
    """This rank's part of a global batch that depends on the step alone."""
    generator = torch.Generator().manual_seed(1000 + step)
    tokens = torch.randint(0, model.vocab, (global_batch, model.seq_len + 1), generator=generator)
    dp, rank = axes.degree("dp"), axes.coordinate["dp"]
    part = tokens.chunk(dp)[rank]
    return Batch(part[:, :-1].contiguous(), part[:, 1:].contiguous())


def make_engine(layout: Layout, rank: int, *, options: TrainOptions, **plan: Any) -> tuple[Engine, Axes]:
    made = make_plan(layout, options=RunOptions(train=options), **plan)
    axes = build_mesh(made.grid, rank=rank, device_type="cpu")
    os.environ["LOCAL_RANK"] = str(rank)  # DeepSpeed insists on it
    folder = Path(tempfile.gettempdir())
    return build_engine(EngineContext(made, options, axes, torch.device("cpu"), folder)), axes


def steps(engine: Engine, axes: Axes, numbers: range, *, model: Model, lr: float, global_batch: int = 8) -> Curve:
    curve: Curve = []
    for step in numbers:
        batch = random_batch(axes, model=model, global_batch=global_batch, step=step)
        result = engine.train_step(batch, lr=lr)
        curve.append((result.loss, result.grad_norm))
    return curve


def train(layout: Layout, rank: int, *, model: Model, optimizer: str, num_steps: int = 6, **training: Any) -> Curve:
    """The curve of one layout; `training` are fields of Training."""
    options = OPTIONS[optimizer]
    engine, axes = make_engine(layout, rank, options=options, model=model, optimizer=optimizer, **training)
    return steps(engine, axes, range(num_steps), model=model, lr=options.lr)


def curves(
    world_size: int, cases: Mapping[str, tuple[Layout, dict[str, Any]]], *, timeout_s: float = 850.0
) -> dict[str, Curve]:
    """Train every case, one after the other, in one start of `world_size` ranks; rank 0's curves, all ranks' equal."""

    def of(layout: Layout, arguments: dict[str, Any]) -> Callable[[int], Curve]:
        return lambda rank: train(layout, rank, **arguments)

    bodies = {name: of(*case) for name, case in cases.items()}
    everyone = run_each(world_size, bodies, timeout_s=timeout_s)
    for other in everyone[1:]:
        assert {name: [loss for loss, _ in curve] for name, curve in other.items()} == {
            name: [loss for loss, _ in curve] for name, curve in everyone[0].items()
        }, "ranks report different losses"
    return {name: [(point[0], point[1]) for point in curve] for name, curve in everyone[0].items()}
