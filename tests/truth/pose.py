"""One process poses as one rank of a world of any size and trains a step there, without the bytes and without peers.

Tensors are fake (shapes and storages, no data), the process group moves nothing: what remains is our own engine's true
order of allocations. Byte counts are those of a GPU, except for what device kernels and libraries allocate themselves
(workspaces, NCCL buffers) and for the allocator's rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from truth.live_bytes import LiveBytes

from launcher.planner.options import TrainOptions
from launcher.planner.record import Plan
from launcher.worker.data.batches import Batch
from launcher.worker.engines.engine import EngineContext
from launcher.worker.engines.optim import local
from launcher.worker.engines.torch_engine import TorchEngine
from launcher.worker.model.transformer import Transformer
from launcher.worker.parallel.mesh import build_mesh


@dataclass(frozen=True)
class Posed:
    """Bytes that live on the posed rank: working parameters, optimizer (main parameters and moments), and most at once
    during a step.
    """

    parameters_bytes: int
    optimizer_bytes: int
    peak_bytes: int


def pose(plan: Plan, *, rank: int, options: TrainOptions, num_steps: int = 1, live: LiveBytes | None = None) -> Posed:
    """Train `num_steps` as `rank` of the plan's world.

    Must not run in a process that has a process group already.
    """
    with _fake_group(rank, plan.layout.world_size):
        axes = build_mesh(plan.grid, rank=rank, device_type="cpu")
        fake, live = FakeTensorMode(allow_non_fake_inputs=True), live or LiveBytes(scalars=True)
        context = EngineContext(plan, options, axes, torch.device("cpu"), Path())
        engine = PosedEngine(context, fake, live)
        parameters, optimizer = _states(engine)
        held = [live.follow(tensors) for tensors in (parameters, optimizer)]
        with fake, live:
            sequences = plan.job.training.global_batch // plan.layout.dp
            for _ in range(num_steps):
                ids = torch.zeros(sequences, plan.job.model.seq_len, dtype=torch.int64)
                engine.train_step(Batch(ids, ids), lr=options.lr)
        return Posed(held[0], held[1], live.peak_bytes)


def _states(engine: TorchEngine) -> tuple[list[Tensor], list[Tensor]]:
    """A rank's parts of its parameters, and the optimizer's main parameters and states."""
    mains = [shard.main for shard in engine.optimizer.shards]
    states = [engine.optimizer.inner.state[main].values() for main in mains]
    return [local(shard.param) for shard in engine.optimizer.shards], [*mains, *chain.from_iterable(states)]


class PosedEngine(TorchEngine):
    """The torch engine on fake parameters."""

    def __init__(self, context: EngineContext, fake: FakeTensorMode, live: LiveBytes) -> None:
        self._fake, self._live = fake, live
        super().__init__(context)

    def _materialise(self, stage: Transformer, context: EngineContext, *, dtype: torch.dtype) -> None:
        stage.to(dtype=dtype)
        with self._fake:
            stage.to_empty(device=self._device)


@contextmanager
def _fake_group(rank: int, world_size: int) -> Iterator[None]:
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
