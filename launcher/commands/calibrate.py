"""`launcher calibrate`: measurements into a cluster file that the planner reads; measured here where none are given."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from launcher.cluster import Cluster
from launcher.cluster.calibration import Findings, cluster_text, curve_of, impossible, line_of, nccl_tests_curve
from launcher.cluster.measured import OPERATIONS, EngineSeconds
from launcher.cluster.readers_nccl_tests import read_nccl_tests
from launcher.commands.common import MODEL
from launcher.commands.invocation import Invocation
from launcher.commands.measuring import measure_here
from launcher.commands.named import OVERRIDE
from launcher.config.compose import load
from launcher.config.folders import folders
from launcher.config.settings import Settings
from launcher.console import notify
from launcher.cost.fit import StepSample, fit_engine
from launcher.errors import InputError
from launcher.files import text_of, write_text
from launcher.planner import read_plan
from launcher.run.folder import RunFolder, one_run, plan_file
from launcher.run.rates import read_rates

OWN = ("name", "operation", "dry_run", "force", "output")
SUFFIX = "_measured"
STORAGE = "storage"  # the recipe
MOST_BYTES = 64 << 20  # of a text
FEWEST_STEPS = 4  # layouts that the engine's seconds are fitted to: as many as there are of these


def run(invocation: Invocation) -> int:
    """Write the cluster file, or print it with dry_run=true."""
    named = [word for word in invocation.overrides if not OVERRIDE.match(word)]
    own = dict(word.split("=", 1) for word in invocation.overrides if word.split("=", 1)[0] in OWN)
    rest = [word for word in invocation.overrides if OVERRIDE.match(word) and word.split("=", 1)[0] not in OWN]
    base = next((word.split("=", 1)[1] for word in rest if word.startswith("cluster=")), None)
    _check_words(own, named, base)
    if base is None:
        base = _cluster_of_runs(named)
        rest.append(f"cluster={base}")
    name, start = own.get("name", f"{base.removesuffix(SUFFIX)}{SUFFIX}"), base.removesuffix(SUFFIX)
    cluster = load([word for word in rest if not MODEL.match(word)]).job.cluster
    if named:
        found = findings_of(named, cluster, operation=own.get("operation"))
    else:
        with tempfile.TemporaryDirectory(prefix="calibrate-") as folder:
            found = findings_of(measure_here(cluster, rest, Path(folder)), cluster, operation=None)
    return _conclude(found, cluster, name=name, start=start, own=own, invocation=invocation)


def _check_words(own: Mapping[str, str], named: Sequence[str], base: str | None) -> None:
    from launcher.cluster.discover import checked_name  # and with it every reader, which tuning need not import

    if own.get("operation", OPERATIONS[0]) not in OPERATIONS:
        raise InputError(f"operation={own['operation']} is not one of {', '.join(OPERATIONS)}")
    for flag in ("dry_run", "force"):
        if own.get(flag, "false") not in ("true", "false"):
            raise InputError(f"{flag}={own[flag]} must be true or false")
    if own.get("output", "text") not in ("text", "json"):
        raise InputError(f"output={own['output']} must be text or json")
    for part in own["name"].split("/") if "name" in own else ():  # of a folder of cluster files
        checked_name(part)
    texts = [name for name in named if not Path(name).is_dir()]
    if base is None and (texts or not named):
        what = f"{texts[0]} does not say what cluster it is of" if texts else "nothing says what to calibrate"
        raise InputError(f"{what}: name the entry of configs/cluster that describes it, as cluster=dgx_a100_80g")


def _cluster_of_runs(named: Sequence[str]) -> str:
    """The cluster of the first run."""
    return read_plan(plan_file(Path(named[0]))).job.cluster.name


def findings_of(named: Sequence[str | Path], cluster: Cluster, *, operation: str | None) -> Findings:
    """What run folders and texts say, the later ones over the earlier."""
    found, steps = Findings(), []
    for name in named:
        path = Path(name)
        if path.is_dir():
            folder = one_run(path)
            document = read_rates(folder.result)
            if document is None:
                raise InputError(f"{path} has no measurements: give runs of the recipes collectives, gemm, memory, …")
            _check_same_gpu(folder, document, cluster)
            found = found.joined(_of_recipe(document, cluster))
            steps += _steps(document) if document["recipe"] == "tune" else []
        else:
            found = found.joined(_of_text(path, cluster, operation=operation))
    if len(steps) >= FEWEST_STEPS and cluster.node.gpu.kind == "cpu":
        found = found.joined(Findings(engine=_engine(steps, found, cluster)))
    return found


def _check_same_gpu(folder: RunFolder, document: Mapping[str, Any], cluster: Cluster) -> None:
    """Raise InputError if a run measured other GPUs than the cluster has; checkpoints are written by the host."""
    if document["recipe"] == STORAGE or not folder.plan.is_file():
        return
    there = read_plan(folder.plan).job.cluster
    measured, wanted = there.node.gpu.name, cluster.node.gpu.name
    if measured != wanted:
        raise InputError(
            f"{folder.path} was measured on {measured} ({there.name}), and {cluster.name} has {wanted}: name the "
            f"cluster that was measured, as cluster={there.name}"
        )


def _of_text(path: Path, cluster: Cluster, *, operation: str | None) -> Findings:
    tests = read_nccl_tests(_text(path), str(path))
    curves = [nccl_tests_curve(test, cluster, operation=operation, what=str(path)) for test in tests]
    versions = {name: test.library for name, test in (("nccl", test) for test in tests) if test.library}
    hosts = tuple(dict.fromkeys(host for test in tests for host in test.hosts))
    dates = tuple(test.date for test in tests if test.date)
    return Findings(tuple(curves), hosts=hosts, versions=versions, dates=dates)


def _text(path: Path) -> str:
    return text_of(path, most_bytes=MOST_BYTES, give="give a run folder, or what nccl-tests prints")


def _of_recipe(document: Mapping[str, Any], cluster: Cluster) -> Findings:
    """What a recipe's document says."""
    keys = document.get("cluster", {})
    gpu, measured = keys.get("node", {}).get("gpu", {}), keys.get("measured", {})
    found = Findings(
        gemm_tflops=gpu.get("gemm_tflops", {}),
        attention_tflops=gpu.get("attention_tflops", {}),
        copy_gbytes_per_s=gpu.get("copy_gbytes_per_s"),
        checkpoint_write=measured.get("checkpoint_write_gbytes_per_s", {}),
        checkpoint_read=measured.get("checkpoint_read_gbytes_per_s", {}),
        hosts=tuple(document.get("hosts", ())),
        versions=document.get("versions", {}),
        dates=(document["date"],) if "date" in document else (),
    )
    return replace(found, curves=_curves(document, cluster)) if document["recipe"] == "collectives" else found


def _curves(document: Mapping[str, Any], cluster: Cluster) -> tuple[Any, ...]:
    """One curve an axis and operation; of CPU ranks their core seconds, which no other process lengthens, and those of
    a group alone, which finds cores idle.
    """
    wrong = sum(row["wrong"] for row in document["results"])
    if wrong:
        raise InputError(f"{wrong} elements are wrong: a fabric that corrupts data is no measure")
    on_cpu = cluster.node.gpu.kind == "cpu"
    points: dict[tuple[Any, ...], list[tuple[int, float]]] = {}
    for row in document["results"]:
        shape = (row["operation"], row["link"], row["group_size"], row["per_node"])
        points.setdefault((*shape, row["num_groups"]), []).append(
            (row["bytes"], (on_cpu and row["cpu_s"]) or row["time_s"])
        )
        if on_cpu and row.get("alone_cpu_s"):
            points.setdefault((*shape, 1), []).append((row["bytes"], row["alone_cpu_s"]))
    return tuple(
        curve_of(found, operation=operation, link=link, ranks=ranks, per_node=per_node, groups=groups)
        for (operation, link, ranks, per_node, groups), found in points.items()
    )


def _steps(document: Mapping[str, Any]) -> list[StepSample]:
    rows = [row for row in document["results"] if row.get("cpu_s")]
    found = []
    for row in rows:
        plan = read_plan(Path(row["plan"]))
        found.append(StepSample(plan.job, plan.layout, median(row["cpu_s"]), median(row["steps_s"])))
    return found


def _engine(steps: Sequence[StepSample], found: Findings, cluster: Cluster) -> EngineSeconds:
    """Fitted with the rates and curves that were measured with it."""
    gpu = cluster.node.gpu
    copy = found.copy_gbytes_per_s * 1e9 if found.copy_gbytes_per_s else gpu.copy_bytes_per_s
    rates = {dtype: rate * 1e12 for dtype, rate in found.gemm_tflops.items()}
    gpu = replace(gpu, gemm_flops={**gpu.gemm_flops, **rates}, copy_bytes_per_s=copy)
    measured = replace(cluster.measured, collectives=found.curves or cluster.measured.collectives)
    samples = []
    for step in steps:
        there = step.job.cluster
        known = replace(there, node=replace(there.node, gpu=gpu), measured=measured)
        samples.append(replace(step, job=replace(step.job, cluster=known)))
    return fit_engine(samples)


def _conclude(
    found: Findings, cluster: Cluster, *, name: str, start: str, own: Mapping[str, str], invocation: Invocation
) -> int:
    if problems := impossible(found, cluster):
        raise InputError(problems)
    found = known(cluster).joined(found)
    command = shlex.join(["launcher", "calibrate", *invocation.overrides])
    text = cluster_text(name, start, found, command=command)
    for line in _told(found):
        notify(line)
    as_json = own.get("output") == "json"
    if own.get("dry_run") == "true":
        print(json.dumps({"name": name, "file": None, "text": text}) if as_json else text.rstrip())
        return 0
    file = Path("configs/cluster") / f"{name}.yaml"
    if file.exists() and own.get("force") != "true" and not _is_ours(file):
        raise InputError(
            f"{file} is there, and not by `launcher calibrate`: give another name=NAME, or force=true to replace it"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)
    _check_reads(file, name)
    print(json.dumps({"name": name, "file": str(file), "text": text}) if as_json else file)
    notify(f"use it with: launcher plan cluster={name}")
    return 0


def known(cluster: Cluster) -> Findings:
    """What the cluster file says already."""
    measured = cluster.measured
    return Findings(
        curves=measured.collectives,
        checkpoint_write={name: rate / 1e9 for name, rate in measured.checkpoint_write.items()},
        checkpoint_read={name: rate / 1e9 for name, rate in measured.checkpoint_read.items()},
        engine=measured.engine,
        hosts=measured.hosts,
        versions=measured.versions,
        dates=(measured.date,) if measured.date else (),
    )


def learned_from(runs: Sequence[Path], settings: Settings) -> list[str]:
    """Calibrate the cluster by trials of plans, where they say enough; returns a line about it."""
    cluster = settings.job.cluster
    if cluster.node.gpu.kind != "cpu":
        return []  # of GPUs a step says too little about one rate or another
    try:
        found = findings_of([run for run in runs if read_rates(RunFolder(run).result)], cluster, operation=None)
    except InputError:
        return []
    if found.engine.layer_s is None:
        return []
    start = cluster.name.removesuffix(SUFFIX)
    name = f"{start}{SUFFIX}"
    own = Path("configs/cluster") / f"{name}.yaml"
    if cluster.name != name and own.exists():
        return [f"{own} stays as it is: tune with cluster={name} to add what these trials showed"]
    text = cluster_text(name, start, known(cluster).joined(found), command="launcher tune")
    own.parent.mkdir(parents=True, exist_ok=True)
    write_text(own, text)
    return [f"what the trials showed of the engine is in {own}: plan with cluster={name}"]


def _told(found: Findings) -> list[str]:
    """What was found, for people."""
    lines = []
    for curve in found.curves:
        latency, rate, error = line_of(curve)
        shown = f"{rate / 1e9:.3g} GB/s" if rate != float("inf") else "no slope"
        lines.append(
            f"{curve.operation} of {curve.ranks} over {curve.link} ({curve.groups} at once): about "
            f"{latency * 1e6:.3g} µs and {shown}, mean distance from that line {error:.1%}"
        )
    lines += [f"products in {dtype}: {rate:.4g} TFLOP/s" for dtype, rate in found.gemm_tflops.items()]
    lines += [f"attention, {kernel}: {rate:.4g} TFLOP/s" for kernel, rate in found.attention_tflops.items()]
    if found.copy_gbytes_per_s:
        lines.append(f"memory copy: {found.copy_gbytes_per_s:.4g} GB/s")
    if found.engine.layer_s is not None:
        lines.append(f"engine on CPU ranks: mean distance of the measured steps {found.engine.error:.1%}")
    return lines


def _is_ours(file: Path) -> bool:
    return "and written by: launcher " in (_text(file).splitlines() or [""])[0]


def _check_reads(file: Path, name: str) -> None:
    """What was written is read as it will be; a file that is not takes itself away."""
    if file.resolve().parent.parent not in [folder.resolve() for folder in map(Path, folders())]:
        return
    try:
        load([f"cluster={name}"])
    except InputError:
        file.unlink()
        raise
