"""Measure matrix products of the planned model's shapes, square ones, and a memory copy, on every rank at once.

Started by `launcher run recipe=gemm` in every rank; the last line on stdout is one JSON document. Rates are the
median over the ranks; the slowest rank is named, since a job runs at its pace. Has run on CPU ranks only.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from launcher import env
from launcher.planner import Plan
from launcher.planner.options import GemmOptions
from launcher.run.result import write_result
from launcher.worker import session
from launcher.worker.metrics.measure import DTYPES, from_all_ranks, seconds_per_call


@dataclass(frozen=True)
class Product:
    """(m × k) by (k × n), named after where it stands in the model."""

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
        cores = env.usable_cores()
        if run.device.type == "cpu" and run.world_size > cores:
            run.say(f"{run.world_size} ranks share {cores} cores: these are the rates of shared cores")
        rows = []
        for dtype in dtypes:
            for product in products:
                seconds = time_product(product, DTYPES[dtype], run.device, options)
                rows.append(row(run.plan, product, dtype, from_all_ranks((socket.gethostname(), seconds))))
                run.say(table_line(rows[-1]))
        memory = copy_rate(run.device, options)
        everyone = from_all_ranks(memory)
        run.say(f"memory copy: {median(everyone):.1f} GB/s a rank (median), {min(everyone):.1f} the slowest")
        best = {dtype: round(max(r["tflops"] for r in rows if r["dtype"] == dtype), 4) for dtype in dtypes}
        document = {
            "recipe": "gemm",
            "world_size": run.world_size,
            "device": torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else "cpu",
            "results": rows,
            "copy_gbytes_per_s": median(everyone),
            "cluster": {"node": {"gpu": {"gemm_tflops": best}}},
        }
        if run.is_main:
            short = {name: value for name, value in document.items() if name != "results"}
            write_result(document, run.folder.result, short=short)


def model_products(plan: Plan) -> list[Product]:
    """The forward products of one layer and of the head for one micro-batch, as tensor parallelism cuts them."""
    model, layout = plan.job.model, plan.layout
    tokens = layout.micro_batch * model.seq_len // layout.cp
    tp = layout.tp
    up = model.ffn_hidden * (2 if model.gated_mlp else 1)
    return [
        Product("qkv", tokens, (model.hidden + 2 * model.kv_hidden) // tp, model.hidden),
        Product("attention output", tokens, model.hidden, model.hidden // tp),
        Product("mlp up", tokens, up // tp, model.hidden),
        Product("mlp down", tokens, model.hidden, model.ffn_hidden // tp),
        Product("head", tokens, model.vocab // tp, model.hidden),
    ]


def time_product(product: Product, dtype: torch.dtype, device: torch.device, options: GemmOptions) -> float:
    """Seconds of one product. Random operands: zeros draw less power, and a GPU then clocks higher."""
    a = torch.randn(product.m, product.k, device=device).to(dtype)
    b = torch.randn(product.k, product.n, device=device).to(dtype)
    out = torch.empty(product.m, product.n, device=device, dtype=dtype)
    call = lambda: torch.mm(a, b, out=out)  # noqa: E731
    return seconds_per_call(call, device=device, warmup=options.warmup, iterations=options.iterations)


def copy_rate(device: torch.device, options: GemmOptions) -> float:
    """GB/s of a copy between two buffers, what is read and what is written counted."""
    source = torch.ones(options.copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    call = lambda: target.copy_(source)  # noqa: E731
    seconds = seconds_per_call(call, device=device, warmup=options.warmup, iterations=options.iterations)
    return 2 * options.copy_bytes / seconds / 1e9


def row(plan: Plan, product: Product, dtype: str, everyone: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """One line of the result, over all ranks."""
    times = [seconds for _, seconds in everyone]
    rate = product.flops / median(times)
    slowest = max(range(len(times)), key=lambda rank: times[rank])
    peak = plan.job.cluster.node.gpu.peak(dtype)
    return {
        "name": product.name,
        "m": product.m,
        "n": product.n,
        "k": product.k,
        "dtype": dtype,
        "time_s": median(times),
        "tflops": rate / 1e12,
        "fraction_of_peak": rate / peak if peak else None,
        "slowest": {"rank": slowest, "host": everyone[slowest][0], "time_s": times[slowest]},
    }


def table_line(line: dict[str, Any]) -> str:
    share = "unknown" if line["fraction_of_peak"] is None else f"{line['fraction_of_peak']:.1%}"
    return (
        f"{line['name']:>18} {line['dtype']} {line['m']:>6} × {line['n']:>6} × {line['k']:>6} "
        f"{line['time_s'] * 1e6:>10.1f} µs {line['tflops']:>8.3f} TFLOP/s, of peak {share}"
    )


if __name__ == "__main__":
    session.main(main)
