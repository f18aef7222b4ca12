"""Train a few steps under each of several plans in the same warm ranks, and say how long a step takes.

Started by `launcher run recipe=tune`, as `launcher tune` does, in every rank: the plans are the files of
recipe.trials, in the order of their names. Each gets process groups, mesh and engine of its own, and all of them go
before the next. A plan that is slower than the best one by recipe.patience is stopped after its first timed step. What
was found is written after each plan, so that a plan which ends the ranks costs its own result only. The last line on
stdout is one JSON document.

Has run on CPU ranks only.
"""

from __future__ import annotations

import socket
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from launcher.errors import InputError, LauncherError
from launcher.files import write_json
from launcher.planner.options import FIRST_STEPS, TuneOptions
from launcher.planner.record import Plan, read_plan
from launcher.run.result import write_result
from launcher.units import format_seconds
from launcher.worker import session
from launcher.worker.data.batches import BatchSource, open_tokens
from launcher.worker.engines.choose import build_engine
from launcher.worker.engines.engine import EngineContext
from launcher.worker.metrics.measure import from_all_ranks
from launcher.worker.metrics.report import forget_peak_memory, peak_memory_bytes
from launcher.worker.parallel.mesh import build_mesh
from launcher.worker.parallel.worlds import Worlds


def worlds_of(run: session.Session) -> Worlds:
    """Worlds of all ranks of this run, which meet at a store on the host of rank 0."""
    host = socket.gethostname() if run.plan.placement.num_nodes > 1 else "127.0.0.1"
    store = dist.TCPStore(host, 0, is_master=True) if run.is_main else None
    address = from_all_ranks((host, store.port) if store else None)[0]
    store = store or dist.TCPStore(*address, is_master=False)
    backend = "cpu:gloo,cuda:nccl" if run.device.type == "cuda" else "gloo"
    return Worlds(store, run.rank, run.world_size, backend, session.GROUP_TIMEOUT)


def main() -> None:
    with session.start() as run:
        options = run.recipe_options(TuneOptions)
        files = trial_files(options)
        worlds, rows, best_s = worlds_of(run), [], float("inf")
        for number, file in enumerate(files):
            with worlds.world(f"trial-{number}"):
                row = measured(run, read_plan(file), options, best_s=best_s) | {"plan": str(file)}
            if row["step_time_s"] is not None and not row["stopped_early"]:
                best_s = min(best_s, row["step_time_s"])
            rows.append(row)
            run.say(row_line(row))
            if run.is_main:
                write_json(run.folder.trials, {"results": rows})
        if run.is_main:
            document = {"recipe": "tune", "world_size": run.world_size, "results": rows}
            write_result(document, run.folder.result, short={"recipe": "tune", "trials": len(rows)})


def trial_files(options: TuneOptions) -> list[Path]:
    """The plans to try, by name."""
    found = sorted(Path(options.trials).glob("*.json")) if options.trials else []
    if not found:
        raise InputError(f"recipe.trials={options.trials} is no folder of plans: start this recipe by `launcher tune`")
    return found


def measured(run: session.Session, plan: Plan, options: TuneOptions, *, best_s: float) -> dict[str, Any]:
    """The steps of one plan: how long each took, what of the cores it used, how much memory was held."""
    began = time.monotonic()
    forget_peak_memory(run.device)  # that of the plan before
    axes = build_mesh(plan.grid, rank=run.rank, device_type=run.device.type, shard_within=plan.layout.shard_group)
    row: dict[str, Any] = {
        "layout": plan.layout.brief(),
        "predicted_step_time_s": plan.estimate.get("step_time_s"),
        "step_time_s": None,
        "stopped_early": False,
        "failed": None,
    }
    train = replace(plan.options.train, steps=options.steps + FIRST_STEPS)
    try:
        engine = build_engine(EngineContext(plan, train, axes, run.device, run.run_dir))
        batches = open_batches(run, plan, dp_rank=axes.coordinate["dp"])
        steps, cpu = [], []
        for step in range(train.steps):
            begin, used = time.perf_counter(), time.process_time()
            engine.train_step(batches(step), lr=train.lr_at(step))
            steps.append(slowest(time.perf_counter() - begin, run.device))
            cpu.append(time.process_time() - used)
            run.pulse.beat()
            if step == FIRST_STEPS and steps[-1] > options.patience * best_s:
                row["stopped_early"] = True
                break
    except torch.OutOfMemoryError as error:  # every rank has the same shapes, but the last stage may fail alone
        raise LauncherError(f"{plan.layout.brief()} ran out of memory: {error}") from error
    used_s = from_all_ranks(cpu[FIRST_STEPS:])
    row["step_time_s"] = median(steps[FIRST_STEPS:])
    row["steps_s"] = steps[FIRST_STEPS:]
    row["cpu_s"] = [sum(one) for one in zip(*used_s, strict=True)]  # of all ranks together
    row["memory_bytes"] = max(from_all_ranks(peak_memory_bytes(run.device)))
    row["seconds"] = time.monotonic() - began
    return row


def slowest(seconds: float, device: torch.device) -> float:
    """The longest of what all ranks measured."""
    taken = torch.tensor(seconds, dtype=torch.float64, device=device)
    dist.all_reduce(taken, dist.ReduceOp.MAX)
    return float(taken)


def open_batches(run: session.Session, plan: Plan, *, dp_rank: int) -> BatchSource:
    """This rank's part of the batches, as in the recipe gpt."""
    model = plan.job.model
    tokens = open_tokens(
        plan.options.train.data,
        run_dir=run.run_dir,
        vocab=model.vocab,
        seq_len=model.seq_len,
        build=run.is_main,
        barrier=dist.barrier,
    )
    return BatchSource(
        tokens,
        seq_len=model.seq_len,
        global_batch=plan.job.training.global_batch,
        dp_rank=dp_rank,
        dp=plan.layout.dp,
        seed=plan.options.train.seed,
    )


def row_line(row: dict[str, Any]) -> str:
    predicted, found = row["predicted_step_time_s"], row["step_time_s"]
    note = "  stopped: too slow" if row["stopped_early"] else ""
    expected = "unknown" if predicted is None else format_seconds(predicted)
    return f"{row['layout']}: predicted {expected}, measured {format_seconds(found)}{note}"


if __name__ == "__main__":
    session.main(main)
