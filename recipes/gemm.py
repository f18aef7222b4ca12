"""Measure matrix products of a model's shapes, square ones, and attention, on every rank at once.

Started by `launcher run recipe=gemm` in every rank: with model= the products of that model as the layout cuts them,
without one square products only. All ranks work for the same stretch of time, so that ranks which share cores report
what they get of them; the rate of a core is by the CPU seconds that were used. The slowest rank is named, since a job
runs at its pace. The last line on stdout is one JSON document. Has run on CPU ranks only.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from launcher import env
from launcher.planner import Plan
from launcher.planner.launch_only import NOT_GIVEN
from launcher.planner.options import GemmOptions
from launcher.run.rates import write_rates
from launcher.worker import session
from launcher.worker.metrics.measure import DTYPES, Sustained, from_all_ranks, sustained, versions

HEAD_DIM, TOKENS, HEADS = 128, 8192, 8  # of the measured attention: half a GPU's batch of a large model
ATTENTION_PRODUCTS = 7  # 2 forward, 5 backward, the causal half of each (Dao et al. 2022)


@dataclass(frozen=True)
class Product:
    """(m × k) by (k × n), named after its place in the model."""

    name: str
    m: int
    n: int
    k: int

    @property
    def flops(self) -> int:
        return 2 * self.m * self.n * self.k


def main() -> None:
    with session.start() as run:
        options = run.recipe_options(GemmOptions)
        dtypes = options.dtypes or (run.plan.job.training.dtype,)
        products = [*model_products(run.plan), *(Product(f"square {s}", s, s, s) for s in options.squares)]
        cores = min(env.usable_cores(), run.plan.placement.ranks_per_node)
        if run.device.type == "cpu" and run.plan.placement.ranks_per_node > cores:
            run.say(f"{run.plan.placement.ranks_per_node} ranks share {cores} cores, and all work at once")
        rows = []
        for dtype in dtypes:
            for product in products:
                found = time_product(product, DTYPES[dtype], run.device, options)
                shape = {"m": product.m, "n": product.n, "k": product.k}
                rows.append(row(run.plan, product.name, product.flops, shape, dtype, gathered(found)))
                run.say(row_line(rows[-1]))
            for length in options.sequences:
                flops, found = time_attention(length, DTYPES[dtype], run.device, options)
                shape = {"m": length, "n": length, "k": HEAD_DIM}
                rows.append(row(run.plan, f"attention {length}", flops, shape, dtype, gathered(found)))
                run.say(row_line(rows[-1]))
        document = document_of(run, dtypes, rows)
        if run.is_main:
            write_rates(document, run.folder.result)


def gathered(found: Sustained) -> list[tuple[str, Sustained]]:
    return from_all_ranks((socket.gethostname(), found))


def model_products(plan: Plan) -> list[Product]:
    """Return the forward products of one layer and of the head for one micro-batch, sharded by tensor parallelism."""
    model, layout = plan.job.model, plan.layout
    if model.name == NOT_GIVEN:
        return []
    tokens = layout.micro_batch * model.seq_len // layout.cp
    tp = layout.tp
    up = model.ffn_hidden * (2 if model.gated_mlp else 1)
    return [
        Product("qkv", tokens, (model.attention_hidden + 2 * model.kv_hidden) // tp, model.hidden),
        Product("attention output", tokens, model.hidden, model.attention_hidden // tp),
        Product("mlp up", tokens, up // tp, model.hidden),
        Product("mlp down", tokens, model.hidden, model.ffn_hidden // tp),
        Product("head", tokens, model.vocab // tp, model.hidden),
    ]


def time_product(product: Product, dtype: torch.dtype, device: torch.device, options: GemmOptions) -> Sustained:
    """One product. Random operands: zeros draw less power, and a GPU then clocks higher."""
    a = torch.randn(product.m, product.k, device=device).to(dtype)
    b = torch.randn(product.k, product.n, device=device).to(dtype)
    out = torch.empty(product.m, product.n, device=device, dtype=dtype)
    return sustained(lambda: torch.mm(a, b, out=out), device=device, seconds=options.seconds)


def time_attention(
    length: int, dtype: torch.dtype, device: torch.device, options: GemmOptions
) -> tuple[int, Sustained]:
    """FLOPs of causal attention forward and backward, by the kernel that torch chooses here, and its time."""
    shape = (max(1, TOKENS // length) if device.type == "cuda" else 1, HEADS, length, HEAD_DIM)
    q, k, v = (torch.randn(shape, device=device).to(dtype).requires_grad_() for _ in range(3))
    grad = torch.randn(shape, device=device).to(dtype)
    flops = ATTENTION_PRODUCTS * shape[0] * HEADS * length * length * HEAD_DIM

    def call() -> None:
        out = scaled_dot_product_attention(q, k, v, is_causal=True)
        torch.autograd.grad(out, (q, k, v), grad)

    return flops, sustained(call, device=device, seconds=options.seconds)


def row(
    plan: Plan, name: str, flops: int, shape: dict[str, int], dtype: str, everyone: Sequence[tuple[str, Sustained]]
) -> dict[str, Any]:
    """One line of the result, over all ranks, which worked at the same time."""
    times = [found.seconds for _, found in everyone]
    rate = flops / median(times)
    slowest = max(range(len(times)), key=lambda rank: times[rank])
    peak = plan.job.cluster.node.gpu.peak(dtype)
    return {
        "name": name,
        **shape,
        "dtype": dtype,
        "time_s": median(times),
        "tflops": rate / 1e12,
        "total_tflops": sum(flops / seconds for seconds in times) / 1e12,
        "core_tflops": flops / median(found.cpu_s for _, found in everyone) / 1e12,
        "fraction_of_peak": rate / peak if peak else None,
        "slowest": {"rank": slowest, "host": everyone[slowest][0], "time_s": times[slowest]},
    }


def document_of(run: session.Session, dtypes: Sequence[str], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The result. The rate of the best product is the key, of a core where ranks are on CPUs."""
    cuda = run.device.type == "cuda"
    measure = "tflops" if cuda else "core_tflops"
    products = [r for r in rows if not r["name"].startswith("attention ")]
    best = {dtype: max((r[measure] for r in products if r["dtype"] == dtype), default=0.0) for dtype in dtypes}
    keys: dict[str, Any] = {"gemm_tflops": {dtype: round(rate, 4) for dtype, rate in best.items() if rate}}
    if cuda and (flash := attention_rate(rows)):
        keys["attention_tflops"] = {"flash": round(flash, 4)}
    return {
        "recipe": "gemm",
        "date": datetime.now(UTC).date().isoformat(),
        "world_size": run.world_size,
        "device": torch.cuda.get_device_name(run.device) if cuda else "cpu",
        "hosts": sorted(set(from_all_ranks(socket.gethostname()))),
        "versions": versions(run.device),
        "results": rows,
        "cluster": {"node": {"gpu": keys}},
    }


def attention_rate(rows: Sequence[dict[str, Any]]) -> float:
    """TFLOP/s of the longest attention in half precision; 0 where none was measured."""
    half = [r for r in rows if r["name"].startswith("attention ") and r["dtype"] != "fp32"]
    return max(half, key=lambda r: r["m"])["tflops"] if half else 0.0


def row_line(line: dict[str, Any]) -> str:
    share = "unknown" if line["fraction_of_peak"] is None else f"{line['fraction_of_peak']:.1%}"
    return (
        f"{line['name']:>18} {line['dtype']} {line['m']:>6} × {line['n']:>6} × {line['k']:>6} "
        f"{line['time_s'] * 1e6:>10.1f} µs {line['tflops']:>8.3f} TFLOP/s a rank, {line['total_tflops']:.3f} of all, "
        f"of peak {share}"
    )


if __name__ == "__main__":
    session.main(main)
