"""The two published tables of tests/data as jobs, layouts and seconds."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from launcher.cluster import Cluster
from launcher.config.compose import load
from launcher.cost import CostModel
from launcher.cost.estimate import Estimate
from launcher.layout import Layout
from launcher.layout.job import Job
from launcher.model import Model, Training
from launcher.stacks import stack_of
from launcher.stacks.profiles import CURRENT_YEAR

DATA = Path(__file__).parents[1] / "data"


@dataclass(frozen=True)
class Row:
    """One row of a table: the run, and its measured seconds a step."""

    name: str
    model: Model
    num_gpus: int
    global_batch: int
    layout: Layout
    seconds: float

    def estimate(self, *, year: int | None) -> Estimate:
        """By Megatron-LM of that year, or of today."""
        training = Training(global_batch=self.global_batch, dtype="fp16", attention="fused")
        stack = stack_of("megatron_lm", year=year or CURRENT_YEAR)
        return CostModel(Job(dgx(self.num_gpus // 8), self.model, training, stack)).estimate(self.layout)

    def error(self, *, year: int | None) -> float:
        """Relative error of the estimated step time."""
        return self.estimate(year=year).step_time_s / self.seconds - 1


def dgx(num_nodes: int) -> Cluster:
    return replace(_one_dgx(), num_nodes=num_nodes)


@cache
def _one_dgx() -> Cluster:
    return load(["cluster=dgx_a100_80g", "layout.tp=1"]).job.cluster


def table(file: str) -> list[Row]:
    lines = (line for line in (DATA / file).read_text().splitlines() if not line.startswith("#"))
    return [_row(record) for record in csv.DictReader(lines)]


def _row(record: dict[str, str]) -> Row:
    number = {key: int(value) for key, value in record.items() if value.isdigit()}
    model = Model(
        record["name"], hidden=number["hidden"], layers=number["layers"], heads=number["heads"],
        kv_heads=number["heads"], ffn_hidden=4 * number["hidden"], gated_mlp=False, vocab=51200, seq_len=2048,
        tied_embeddings=True,
    )  # fmt: skip
    layout = Layout(
        tp=number["tp"], pp=number["pp"], dp=number["dp"], virtual_stages=number["virtual_stages"],
        micro_batch=number["micro_batch"], recompute=record["recompute"],
        sequence_parallel=record["sequence_parallel"] == "true",
    )  # fmt: skip
    seconds = float(record["seconds"]) if "seconds" in record else _seconds(number)
    return Row(record["name"], model, number["gpus"], number["global_batch"], layout, seconds)


def _seconds(number: dict[str, int]) -> float:
    """Narayanan et al. 2021, equation 3, over the table's TFLOP/s per GPU."""
    hidden, layers, seq, vocab = number["hidden"], number["layers"], 2048, 51200
    flops = 96 * number["global_batch"] * seq * layers * hidden**2
    flops *= 1 + seq / (6 * hidden) + vocab / (16 * layers * hidden)
    return flops / (number["gpus"] * number["tflops_per_gpu"] * 1e12)
