"""How far the cost model is off on published runs, whole and with each source left out of the fit.

    python tests/benchmarks/generalize.py --rows RUNS.csv [RUNS.csv ...] [--years] [--leave-out] [--fit] [--worst N]

A row of the file is one published run or out-of-memory verdict (columns: hidden, layers, tp, pp, …, iter_time_s,
value). `--leave-out` refits the constants marked "fitted" in launcher/cost/constants.py without each source in turn,
and predicts it; fitting needs scipy.
"""

from __future__ import annotations

import argparse
import csv
import re
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.build import build_model, build_training
from launcher.cluster import Cluster
from launcher.cost import CostModel
from launcher.cost.constants import DEFAULT, Constants
from launcher.layout import Layout
from launcher.layout.job import Job
from launcher.settings import load

CLUSTERS = {"A100-80G-SXM": "dgx_a100_80g", "A100-40G-SXM": "dgx_a100_40g"}
# Year of the software of a run, by source: what a user knows of his own stack.
YEARS = {
    "megatron_ptdp": 2021, "mtnlg": 2021, "megatron_readme": 2021, "neox": 2021, "korthikanti": 2022, "bloom": 2022,
    "glm130b": 2022, "nemo": 2022, "pythia": 2022, "fms": 2024, "torchtitan": 2024, "paddle": 2024,
    "megatron_golden": 2024, "llmfoundry_80_v2": 2024, "llmfoundry_40_v2": 2024,
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One published run: what was trained, how, and what came of it."""

    name: str
    group: str
    job: Job
    layout: Layout
    measured_s: float | None
    out_of_memory: bool
    judge_memory: bool
    sweep: tuple[str, ...]


def read_runs(files: list[Path], *, years: bool) -> list[Run]:
    """Runs with a whole layout and a time or a verdict."""
    bases = {name: load([f"cluster={cluster}", "layout.tp=1"]).job.cluster for name, cluster in CLUSTERS.items()}
    rows = [row for file in files for row in csv.DictReader(file.open())]
    runs = (run_of(row, bases, years=years) for row in rows)
    return [run for run in runs if run is not None]


def run_of(row: dict[str, str], bases: dict[str, Cluster], *, years: bool) -> Run | None:
    needed = "hidden layers heads vocab seq_len gpus tp pp dp global_batch micro_batch".split()
    out_of_memory = row["value"] == "OOM"
    if any(not row[key] for key in needed) or row["gpu"] not in bases or not (row["iter_time_s"] or out_of_memory):
        return None
    problems: list[str] = []
    cluster = cluster_of(row, bases[row["gpu"]])
    model = build_model(model_data(row), problems)
    training = build_training(training_data(row, years=years), cluster, problems)
    if problems:
        raise SystemExit(f"{row['id']}: {problems}")
    return Run(
        name=row["id"],
        group=row["group"],
        job=Job(cluster, model, training),
        layout=layout_of(row),
        measured_s=float(row["iter_time_s"]) if row["iter_time_s"] else None,
        out_of_memory=out_of_memory,
        judge_memory=not row["mem_note"].startswith("ignore"),
        sweep=tuple(row[k] for k in ("group", "hidden", "layers", "seq_len", "vocab", "gpus", "global_batch", "gpu")),
    )


def cluster_of(row: dict[str, str], base: Cluster) -> Cluster:
    gpus, per_node = int(row["gpus"]), int(row["gpus_per_node"] or 8)
    node = base.node
    if gpus < per_node:
        node = replace(node, num_gpus=gpus, domains=(tuple(range(gpus)),))
    link = nics(row["inter_node"])
    if link and gpus > per_node:
        node = replace(node, num_nics=link[0], nic_gbps=float(link[1]))
    return replace(base, num_nodes=max(1, gpus // per_node), node=node)


def nics(text: str) -> tuple[int, int] | None:
    """(count, Gb/s each) of a node, or None where the source does not say."""
    if found := re.search(r"(\d+)\s*x\s*(\d+)\s*Gb", text) or re.search(r"\((\d+)\s*x\s*(\d+)", text):
        return int(found[1]), int(found[2])
    if "4x IB per node" in text:
        return 4, 200
    return (4, 100) if "400 Gbps per node" in text else None


def model_data(row: dict[str, str]) -> dict[str, object]:
    hidden, ffn = int(row["hidden"]), int(row["ffn_hidden"] or 0)
    return {
        "name": row["model_name"], "hidden": hidden, "layers": int(row["layers"]), "heads": int(row["heads"]),
        "kv_heads": int(row["kv_heads"] or row["heads"]), "ffn_hidden": ffn or 4 * hidden,
        "gated_mlp": bool(ffn) and ffn < 4 * hidden, "vocab": int(row["vocab"]), "seq_len": int(row["seq_len"]),
        "tied_embeddings": "auto",
    }  # fmt: skip


def training_data(row: dict[str, str], *, years: bool) -> dict[str, object]:
    data: dict[str, object] = {
        "global_batch": int(row["global_batch"]), "dtype": row["dtype"] or "fp16", "attention": attention(row),
        "fused_norm": "RMS kernel" in row["notes"],
    }  # fmt: skip
    if years:
        data["software_year"] = next((y for prefix, y in YEARS.items() if row["group"].startswith(prefix)), 2023)
    return data


def attention(row: dict[str, str]) -> str:
    """The attention kernel: named by the source, or whether it was FlashAttention."""
    if kernel := re.search(r"kernel=([^;]*)", row["notes"]):
        return {"torch": "math", "fused": "fused"}.get(kernel[1], "flash1" if "v1" in kernel[1] else "flash")
    if row["flash_attention"] == "y":
        return "flash1" if "triton" in row["notes"].lower() else "flash"
    return "fused"


def layout_of(row: dict[str, str]) -> Layout:
    return Layout(
        tp=int(row["tp"]), pp=int(row["pp"]), dp=int(row["dp"]), cp=int(row["cp"] or 1),
        virtual_stages=int(row["interleave"] or 1), micro_batch=int(row["micro_batch"]),
        zero_stage=int(row["zero_stage"] or 0), recompute=row["recompute"] or "none",
        sequence_parallel=row["sequence_parallel"] == "y",
    )  # fmt: skip


@dataclass(frozen=True)
class Prediction:
    """What the model says of a run."""

    step_s: float
    fits: bool


def predict(runs: list[Run], constants: Constants) -> list[Prediction]:
    """Every run's estimate; runs of one job share a model."""
    models: dict[Job | int, CostModel] = {}
    found = []
    for run in runs:
        model = models.setdefault(id(run.job), CostModel(run.job, constants))
        estimate = model.estimate(run.layout)
        found.append(Prediction(estimate.step_time_s, estimate.fits))
    return found


def report(runs: list[Run], predictions: list[Prediction], *, worst: int) -> None:
    """The table by source, then the totals."""
    errors, fits, sweeps = defaultdict(list), defaultdict(list), defaultdict(list)
    listed = []
    for run, predicted in zip(runs, predictions, strict=True):
        if run.judge_memory:
            fits[run.group].append((predicted.fits, not run.out_of_memory))
        if run.measured_s:
            error = predicted.step_s / run.measured_s - 1
            errors[run.group].append(error)
            listed.append((error, run, predicted))
        sweeps[run.sweep].append((predicted.step_s if predicted.fits else float("inf"), run.measured_s or float("inf")))
    print(f"{'source':24} rows  MAPE%  bias%  fit%  false fits / ooms")
    for group in sorted(fits):
        e, f = errors[group], fits[group]
        agree = sum(a == b for a, b in f) / len(f)
        false_fits, false_ooms = sum(a and not b for a, b in f), sum(b and not a for a, b in f)
        print(f"{group:24} {len(e):4} {mape(e):6.2f} {100 * mean(e):+6.1f} {100 * agree:6.1f} {false_fits:4} /
        {false_ooms}")
    everything = [e for group in errors.values() for e in group]
    verdicts = [v for group in fits.values() for v in group]
    within = sum(abs(e) <= 0.1 for e in everything) / len(everything)
    by_group = statistics.mean(mape(e) for e in errors.values())
    agree = sum(a == b for a, b in verdicts) / len(verdicts)
    false_fits = sum(a and not b for a, b in verdicts) / len(verdicts)
    print(
        f"rows {len(everything)}: MAPE {mape(everything):.2f} %, mean over groups {by_group:.2f} %, within 10 %: {100
        * within:.1f} %; " f"fits {100 * agree:.1f} %, false fits {100 * false_fits:.1f} %, balanced {100 *
        balanced(verdicts):.1f} %; {regret(sweeps)}"
    )
    for error, run, predicted in sorted(listed, key=lambda x: -abs(x[0]))[:worst]:
        print(f"  {100 * error:+6.1f}% {run.name}: measured {run.measured_s:.3f} s, {predicted.step_s:.3f} s;
        {run.layout.brief()}")


def mean(values: list[float]) -> float:
    return statistics.mean(values) if values else 0.0


def mape(errors: list[float]) -> float:
    return 100 * mean([abs(e) for e in errors])


def balanced(verdicts: list[tuple[bool, bool]]) -> float:
    """Mean of the shares told right among runs that ran and among those that ran out of memory."""
    ran, oom = [a for a, b in verdicts if b], [not a for a, b in verdicts if not b]
    return mean([mean([float(x) for x in s]) for s in (ran, oom) if s])


def regret(sweeps: dict[tuple[str, ...], list[tuple[float, float]]]) -> str:
    """How much slower than the best measured layout of a sweep the one is that the estimates pick."""
    found = []
    for points in sweeps.values():
        alive = [measured for _, measured in points if measured < float("inf")]
        if len(alive) < 4:
            continue
        lowest = min(estimated for estimated, _ in points)
        found.append(max(m for e, m in points if e == lowest) / min(alive) - 1 if lowest < float("inf") else
        float("inf"))
    if not found:
        return "no sweeps"
    return f"regret over {len(found)} sweeps: median {100 * statistics.median(found):.1f} %, worst {100 *
    max(found):.1f} %"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=Path, required=True)
    parser.add_argument("--years", action="store_true")
    parser.add_argument("--worst", type=int, default=0)
    args = parser.parse_args()
    runs = read_runs(args.rows, years=args.years)
    started = time.perf_counter()
    predictions = predict(runs, DEFAULT)
    seconds = time.perf_counter() - started
    report(runs, predictions, worst=args.worst)
    print(f"{1e6 * seconds / len(runs):.0f} µs an estimate, each with its own model")
    return 0


if __name__ == "__main__":
    sys.exit(main())
