"""Tokens/s of the torch engine with tp2 against the same GPT by DTensor's parallelize_module: side by side, in turn.

Both run in the same two forked gloo ranks, one thread each. The loop by hand is what torch's tutorial on tensor
parallelism writes: column-wise and row-wise linears, AdamW, clipping by the group's norm.
Usage: python tests/benchmarks/dtensor_loop.py [--blocks 10] [--steps 5]. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "worker"))

from ranks import TINY, run_ranks
from training import ADAMW, make_engine, random_batch

from launcher.layout import Layout
from launcher.model import Model
from launcher.worker.data.batches import Batch

SHAPE = replace(TINY, hidden=128, ffn_hidden=512, vocab=256, seq_len=128, tied_embeddings=False)
GLOBAL_BATCH = 8
LR = 1e-3
LAYOUT = Layout(tp=2, pp=1, dp=1, micro_batch=GLOBAL_BATCH)


class Block(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.head_dim = model.hidden // model.heads
        self.norm, self.norm2 = nn.LayerNorm(model.hidden), nn.LayerNorm(model.hidden)
        self.q, self.k, self.v, self.o = (nn.Linear(model.hidden, model.hidden) for _ in range(4))
        self.up, self.down = nn.Linear(model.hidden, model.ffn_hidden), nn.Linear(model.ffn_hidden, model.hidden)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (linear(y).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for linear in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class PlainGpt(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(model.vocab, model.hidden), nn.Embedding(model.seq_len, model.hidden)
        self.blocks = nn.ModuleList(Block(model) for _ in range(model.layers))
        self.norm, self.head = nn.LayerNorm(model.hidden), nn.Linear(model.hidden, model.vocab, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def clip(grads: list[Tensor], limit: float) -> None:
    """Clip by the norm of all: torch's own clips DTensors or plain tensors, not both."""
    kinds = [[g for g in grads if isinstance(g, DTensor)], [g for g in grads if not isinstance(g, DTensor)]]
    norms = [nn.utils.get_total_norm(kind, foreach=False) for kind in kinds]
    total = sum(float(n.full_tensor() if isinstance(n, DTensor) else n) ** 2 for n in norms) ** 0.5
    if total > limit:
        for grad in grads:
            grad.mul_(limit / total)


def by_dtensor(model: Model) -> Callable[[Batch], float]:
    torch.manual_seed(0)
    module, mesh = PlainGpt(model), init_device_mesh("cpu", (2,))
    columns, rows = ColwiseParallel(), RowwiseParallel()
    for block in module.blocks:
        parallelize_module(block, mesh, {**dict.fromkeys(("q", "k", "v", "up"), columns), "o": rows, "down": rows})
    optimizer = torch.optim.AdamW(module.parameters(), lr=LR, foreach=False)

    def step(batch: Batch) -> float:
        loss = F.cross_entropy(module(batch.ids).flatten(0, 1), batch.targets.flatten())
        loss.backward()
        clip([p.grad for p in module.parameters() if p.grad is not None], ADAMW.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def measure(rank: int, *, blocks: int, steps: int) -> dict[str, list[float]]:
    """Seconds of each way's blocks, without the first, and its first and last loss."""
    engine, axes = make_engine(LAYOUT, rank, options=ADAMW, model=SHAPE, optimizer="adamw", global_batch=GLOBAL_BATCH)
    by_hand, batch = by_dtensor(SHAPE), random_batch(axes, model=SHAPE, global_batch=GLOBAL_BATCH, step=0)
    times: dict[str, list[float]] = {"engine": [], "DTensor": []}
    losses: dict[str, list[float]] = {name: [] for name in times}
    for _ in range(blocks + 1):
        for name in times:
            begin = time.perf_counter()
            for _ in range(steps):
                losses[name].append(engine.train_step(batch, lr=LR).loss if name == "engine" else by_hand(batch))
            times[name].append(time.perf_counter() - begin)
    for name, curve in losses.items():
        assert curve[-1] < curve[0], f"{name} does not learn: {curve}"
    return {name: seconds[1:] for name, seconds in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--steps", type=int, default=5)
    asked = parser.parse_args()
    times = run_ranks(2, lambda rank: measure(rank, blocks=asked.blocks, steps=asked.steps))[0]
    step_s = {name: median(seconds) / asked.steps for name, seconds in times.items()}
    tokens_per_s = {name: GLOBAL_BATCH * SHAPE.seq_len / seconds for name, seconds in step_s.items()}
    ratio = median(hand / ours for hand, ours in zip(times["DTensor"], times["engine"], strict=True))
    step_ms = {name: 1e3 * seconds for name, seconds in step_s.items()}
    print(json.dumps({"tokens_per_s_ratio": round(ratio, 3), "tokens_per_s": tokens_per_s, "step_ms": step_ms}))


if __name__ == "__main__":
    main()
