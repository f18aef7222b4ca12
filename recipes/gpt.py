"""Train a GPT under the plan's layout: tp × pp × dp with plain torch, or with DeepSpeed by train.engine=deepspeed.

Started by `launcher run recipe=gpt` in every rank. Reads top to bottom; the last line on stdout is one JSON document.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch.distributed as dist

from launcher.run.metrics import StepMetrics, describe_sample, describe_split, with_earlier
from launcher.run.result import print_result, read_train_result, write_result
from launcher.units import format_bytes, format_count, format_seconds
from launcher.worker import session
from launcher.worker.data.batches import BatchSource, open_tokens
from launcher.worker.engines.choose import build_engine
from launcher.worker.engines.engine import Engine, EngineContext
from launcher.worker.metrics.profiling import profiled
from launcher.worker.metrics.report import peak_memory_bytes, throughput, train_result


@dataclass
class Progress:
    """The results of this process's steps."""

    first_step: int
    steps: list[StepMetrics] = field(default_factory=list)
    stopped: bool = False


def train() -> None:
    with session.start() as run:
        explain(run)
        batches = open_batches(run)
        engine = build_engine(EngineContext(run.plan, run.options, run.axes, run.device, run.run_dir, run.spans))
        run.say(f"ready to train {time.monotonic() - run.started_at:.1f} s after the rank's start")

        # Resume at the step after the checkpoint, which any layout may have saved.
        done = run.resume(engine.state(loading=True)) if run.options.checkpoint_every else 0
        if done:
            engine.loaded()

        progress = Progress(done)
        for step in range(done, run.options.steps):
            one_step(run, engine, batches, progress, step)
            if progress.stopped:
                run.say(f"asked to stop: ending after step {step + 1}")
                break
        run.close()
        if run.is_main:
            conclude(run, progress)


def explain(run: session.Session) -> None:
    """Print every derived number with its reason."""
    model, training, layout, options = run.plan.job.model, run.plan.job.training, run.plan.layout, run.options
    micro_batches = layout.num_micro_batches(training.global_batch)
    tokens = training.global_batch * model.seq_len
    run.say(
        f"model {model.name}: {format_count(model.params)} parameters, {model.layers} layers, hidden {model.hidden}"
    )
    run.say(
        f"micro-batches a step: {micro_batches}, because global_batch {training.global_batch} = "
        f"dp {layout.dp} × micro_batch {layout.micro_batch} × {micro_batches}"
    )
    run.say(f"tokens a step: {tokens:,}, because {training.global_batch} sequences × {model.seq_len} tokens")
    run.say(
        f"learning rate: up to {options.lr:g} over {options.warmup_steps} steps, then {options.lr_schedule}; "
        f"gradients clipped to norm {options.grad_clip:g} over all axes"
    )
    run.say(f"engine {training.engine}, {training.dtype}, ZeRO-{layout.zero_stage}, schedule {layout.schedule}")


def open_batches(run: session.Session) -> BatchSource:
    """Open the batches: the global batch is the same for every layout; each data-parallel rank reads its own part."""
    model, training, options = run.plan.job.model, run.plan.job.training, run.options
    tokens = open_tokens(
        options.data,
        run_dir=run.run_dir,
        vocab=model.vocab,
        seq_len=model.seq_len,
        build=run.is_main,
        barrier=dist.barrier,
    )
    batches = BatchSource(
        tokens,
        seq_len=model.seq_len,
        global_batch=training.global_batch,
        dp_rank=run.axes.coordinate["dp"],
        dp=run.plan.layout.dp,
        seed=options.seed,
    )
    run.say(f"data: {tokens.num_tokens:,} tokens in {tokens.path}, {batches.num_windows:,} sequences an epoch")
    return batches


def one_step(run: session.Session, engine: Engine, batches: BatchSource, progress: Progress, step: int) -> None:
    """Train on batch `step`, log its numbers, and save a checkpoint if it is due."""
    options = run.options
    begin = time.perf_counter()
    with run.spans.step(step + 1):
        with run.spans.span("data"):
            batch = batches(step)
        loaded = time.perf_counter()
        lr = options.lr_at(step)
        with profiled(step + 1, rank=run.rank, options=options, run_dir=run.run_dir):
            result = engine.train_step(batch, lr=lr)
    step_s = time.perf_counter() - begin
    tokens_per_s, mfu = throughput(run.plan, step_s=step_s)
    numbers = StepMetrics(
        step=step + 1,
        loss=result.loss,
        grad_norm=result.grad_norm,
        lr=lr,
        step_s=step_s,
        tokens_per_s=tokens_per_s,
        mfu=mfu,
        memory_bytes=peak_memory_bytes(run.device),
        split_s={"data_s": loaded - begin, **result.times},
    )
    progress.steps.append(numbers)
    run.tracker.add(numbers)
    progress.stopped = run.end_step(step + 1, step_s=step_s)
    last = progress.stopped or step + 1 == options.steps
    if options.checkpoint_every and (last or run.checkpoints.due(step + 1)):
        run.checkpoints.save(step + 1, engine.state(loading=False))


def conclude(run: session.Session, progress: Progress) -> None:
    """Print predicted and measured values; write the result to the run folder, and in short as the last line."""
    file = run.folder.result
    earlier = read_train_result(file)
    if not progress.steps and earlier:
        run.say(f"nothing was left to do after step {progress.first_step}: {file} is unchanged")
        print_result(earlier.short(), file)
        return
    steps = with_earlier(run.folder.metrics, progress.steps)
    result = train_result(run.plan, steps, first_step=progress.first_step, stopped=progress.stopped)
    predicted, measured = (in_words(s) for s in (result.predicted_step_time_s, result.measured_step_time_s))
    run.say(f"step time: predicted {predicted}, measured {measured} ({describe_sample(steps)})")
    if result.measured_split_s:
        run.say(f"of it, on this rank: {describe_split(result.measured_split_s)}")
    room = [format_bytes(b or 0) for b in (result.predicted_memory_bytes, result.measured_memory_bytes)]
    kind = "allocated" if run.device.type == "cuda" else "resident, the interpreter and its libraries included"
    run.say(f"memory: predicted {room[0]}, measured {room[1]} {kind}")
    write_result(result.to_dict(), file, short=result.short())


def in_words(seconds: float | None) -> str:
    return "unknown" if seconds is None else format_seconds(seconds)


if __name__ == "__main__":
    session.main(train)
