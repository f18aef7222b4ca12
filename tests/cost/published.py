"""Published, measured runs of tests/data as jobs and layouts; tests/data/README.md has their sources."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from launcher.cluster import Cluster
from launcher.config.compose import load
from launcher.cost import CostModel
from launcher.cost.constants import DEFAULT, Constants
from launcher.cost.estimate import Estimate
from launcher.layout import Layout
from launcher.layout.job import Job
from launcher.model import Model, Training
from launcher.schema import read
from launcher.stacks import stack_of

RUNS = Path(__file__).parents[1] / "data" / "published_runs.csv"
CLUSTERS = {"A100-80G-SXM": "dgx_a100_80g", "A100-40G-SXM": "dgx_a100_40g", "H100-80G-SXM": "dgx_h100"}
NUMBERS = ("tp", "pp", "dp", "cp", "virtual_stages", "micro_batch", "zero_stage", "shard_group")
KERNELS = ("compile", "fused_norm", "fused_rotary", "fused_loss")


@dataclass(frozen=True)
class Run:
    """One published run: what was trained, how, and what came of it."""

    name: str
    source: str
    job: Job
    layout: Layout
    step_s: float | None  # None: only whether it ran is known
    fits: bool | None  # None: its memory says nothing
    debugging: bool  # the source ran it in a mode for debugging: every launch blocking, or deterministic kernels only

    @property
    def stack(self) -> str:
        return self.job.stack.name

    def estimate(self, constants: Constants = DEFAULT) -> Estimate:
        return CostModel(self.job, constants).estimate(self.layout)

    def error(self) -> float:
        """Relative error of the estimated step time."""
        assert self.step_s is not None, f"{self.name} has no measured time"
        return self.estimate().step_time_s / self.step_s - 1


def read_runs(file: Path = RUNS, *, stated: bool = True) -> list[Run]:
    """Return the runs of a file; `stated`: with what a source says of its software and not its name alone."""
    with file.open() as lines:
        runs = [_run(record, stated=stated) for record in csv.DictReader(lines)]
    jobs: dict[str, Job] = {}
    return [replace(run, job=jobs.setdefault(repr(run.job), run.job)) for run in runs]


def table(source: str, *, stated: bool = True) -> list[Run]:
    """Return the runs of one source."""
    return [run for run in read_runs(stated=stated) if run.source == source]


def dgx(num_nodes: int) -> Cluster:
    return replace(_shipped("dgx_a100_80g"), num_nodes=num_nodes)


@cache
def _shipped(cluster: str) -> Cluster:
    return load([f"cluster={cluster}", "layout.tp=1"]).job.cluster


def _run(record: dict[str, str], *, stated: bool) -> Run:
    known: dict[str, Any] = {key: _flag(record[key]) for key in KERNELS if stated or key == "compile"}
    known["tp_overlap"] = record["tp_overlap"] or None
    if stated and record["year"]:
        known["year"] = int(record["year"])
    training = {key: record[key] for key in ("dtype", "attention")}
    training["global_batch"] = int(record["global_batch"])  # type: ignore[assignment]
    job = Job(
        _cluster(record),
        read(Model, _model(record), "model"),
        read(Training, training, "train"),
        stack_of(record["stack"], **known),
    )
    return Run(
        name=record["id"],
        source=record["source"],
        job=job,
        layout=_layout(record),
        step_s=float(record["step_s"]) if record["step_s"] else None,
        fits=_flag(record["fits"]),
        debugging=bool(record["debugging"]),
    )


def _flag(text: str) -> bool | None:
    return text == "1" if text else None


def _cluster(record: dict[str, str]) -> Cluster:
    base = _shipped(CLUSTERS[record["gpu"]])
    gpus, per_node = int(record["gpus"]), int(record["gpus_per_node"])
    node = base.node
    if gpus < per_node:
        node = replace(node, num_gpus=gpus, domains=(tuple(range(gpus)),))
    if record["nics"]:
        node = replace(node, num_nics=int(record["nics"]), nic_gbps=float(record["nic_gbps"]))
    if record["memory_mib"]:
        gpu = replace(
            node.gpu,
            memory_bytes=int(record["memory_mib"]) * 2**20,
            hbm_bytes_per_s=float(record["hbm_gbytes_per_s"]) * 1e9,
        )
        node = replace(node, gpu=gpu)
    return replace(base, num_nodes=max(1, gpus // per_node), node=node)


def _model(record: dict[str, str]) -> dict[str, object]:
    sizes = {key: int(record[key]) for key in ("hidden", "layers", "heads", "kv_heads", "ffn_hidden", "vocab")}
    return {
        **sizes, "name": record["id"], "seq_len": int(record["seq_len"]), "gated_mlp": record["gated_mlp"] == "1",
        "tied_embeddings": "auto",
    }  # fmt: skip


def _layout(record: dict[str, str]) -> Layout:
    return Layout(
        **{key: int(record[key]) for key in NUMBERS},
        recompute=record["recompute"],
        recompute_fraction=float(record["recompute_fraction"]),
        sequence_parallel=record["sequence_parallel"] == "1",
        schedule="interleaved" if int(record["virtual_stages"]) > 1 else "1f1b",
    )
