"""Train a GPT under the plan's layout: tp × pp × dp with plain torch, or with DeepSpeed by train.engine=deepspeed.

Started by `launcher run recipe=gpt` in every rank. Reads top to bottom; the last line on stdout is one JSON document.
"""

from __future__ import annotations

import json
import time
from statistics import median

import torch.distributed as dist

from launcher.units import format_count, format_seconds
from launcher.worker import session
from launcher.worker.data import BatchSource, open_tokens
from launcher.worker.engine import EngineContext, build_engine
from launcher.worker.profiling import profiled
from launcher.worker.report import peak_memory_bytes, result_document, throughput, write_result

WARMUP_STEPS = 3  # steps that the measured step time leaves out: first allocations, first messages between stages


def train() -> None:
    with session.start() as run:
        plan, options, layout = run.plan, run.options, run.plan.layout
        model, training = plan.job.model, plan.job.training

        # Every derived number, with its reason.
        micro_batches = layout.num_micro_batches(training.global_batch)
        tokens_per_step = training.global_batch * model.seq_len
        run.say(
            f"model {model.name}: {format_count(model.params)} parameters, {model.layers} layers, hidden {model.hidden}"
        )
        run.say(
            f"micro-batches a step: {micro_batches}, because global_batch {training.global_batch} = "
            f"dp {layout.dp} × micro_batch {layout.micro_batch} × {micro_batches}"
        )
        run.say(
            f"tokens a step: {tokens_per_step:,}, because {training.global_batch} sequences × {model.seq_len} tokens"
        )
        run.say(
            f"learning rate: up to {options.lr:g} over {options.warmup_steps} steps, then {options.lr_schedule}; "
            f"gradients clipped to norm {options.grad_clip:g} over all axes"
        )
        run.say(f"engine {training.engine}, {training.dtype}, ZeRO-{layout.zero_stage}, schedule {layout.schedule}")

        # Data: the same global batch whatever the layout; each data-parallel rank reads its own part.
        tokens = open_tokens(
            options.data, run_dir=run.run_dir, vocab=model.vocab, build=run.is_main, barrier=dist.barrier
        )
        batches = BatchSource(
            tokens,
            seq_len=model.seq_len,
            global_batch=training.global_batch,
            dp_rank=run.axes.coordinate["dp"],
            dp=layout.dp,
            seed=options.seed,
        )
        run.say(f"data: {tokens.num_tokens:,} tokens in {tokens.path}, {batches.num_windows:,} sequences an epoch")

        engine = build_engine(EngineContext(plan, options, run.axes, run.device, run.run_dir))
        run.say(f"ready to train {time.monotonic() - run.started_at:.1f} s after the rank's start")

        # Resume: on whatever layout the checkpoint was saved, at the step after it.
        first = run.resume(engine.state(loading=True)) if options.checkpoint_every else 0
        if first:
            engine.loaded()

        losses, step_times, stopped = [], [], False
        for step in range(first, options.steps):
            begin = time.perf_counter()
            batch = batches(step)
            loaded = time.perf_counter()
            lr = options.lr_at(step)
            with profiled(step + 1, rank=run.rank, options=options, run_dir=run.run_dir):
                result = engine.train_step(batch, lr=lr)
            step_s = time.perf_counter() - begin
            losses.append(result.loss)
            step_times.append(step_s)
            speed = throughput(plan, step_s=step_s)
            numbers = {
                "loss": result.loss,
                "grad_norm": result.grad_norm,
                "lr": lr,
                "step_s": step_s,
                "data_s": loaded - begin,
            }
            numbers |= {**result.times, **speed, "memory_bytes": peak_memory_bytes(run.device)}
            run.tracker.log(step + 1, numbers)
            stopped = run.end_step(step + 1, step_s=step_s)
            if options.checkpoint_every and (run.checkpoints.due(step + 1) or stopped or step + 1 == options.steps):
                run.checkpoints.save(step + 1, engine.state(loading=False))
            if stopped:
                run.say(f"asked to stop: ending after step {step + 1}")
                break
        run.close()

        if run.is_main:
            measured_s = median(step_times[WARMUP_STEPS:] or step_times) if step_times else None
            predicted_s = plan.estimate.get("step_time_s")
            told = ["unknown" if s is None else format_seconds(s) for s in (predicted_s, measured_s)]
            run.say(f"step time: predicted {told[0]}, measured {told[1]} (median after step {first + WARMUP_STEPS})")
            document = result_document(plan, losses=losses, measured_s=measured_s, first_step=first, stopped=stopped)
            write_result(document, run.run_dir)
            print(json.dumps(document), flush=True)


if __name__ == "__main__":
    session.main(train)
