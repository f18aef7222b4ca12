"""Tokens/s of the gpt recipe against a plain hand-written loop: same model, data, layout (dp=2), side by side.

Both loops run in the same two forked gloo ranks and take turns in blocks, so that both see the same machine. Ours is
the recipe's own step, with its metrics, its sign of life and its vote on stopping; the plain loop is what a person
would write: DistributedDataParallel, torch's clip_grad_norm_, torch.optim.AdamW, the loss read at every step. Both
read the same batches from the same file.
Usage: python tests/benchmarks/train_overhead.py [--blocks 20] [--steps 5]. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "worker"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ranks import TINY, make_plan, run_ranks
from training import ADAMW, make_engine

from launcher.env import RankEnv
from launcher.layout import Layout
from launcher.model import Model
from launcher.planner.options import TrainOptions
from launcher.planner.record import RunOptions
from launcher.run.folder import RunFolder
from launcher.run.metrics import MetricsFile
from launcher.worker.data.batches import Batch, BatchSource, TokenFile, standard_library_tokens, write_token_file
from launcher.worker.metrics.tracking import Terminal, Tracker
from launcher.worker.model.transformer import StageShape, Transformer
from launcher.worker.parallel.mesh import Axes
from launcher.worker.session import Session
from launcher.worker.stop import Pulse
from recipes.gpt import Progress, one_step

# gpt_tiny's shape: a step is long enough that a fixed cost of a millisecond would show, not drown.
GPT_TINY = replace(TINY, name="gpt_tiny", hidden=128, head_dim=32, ffn_hidden=512, vocab=256, seq_len=128)
GLOBAL_BATCH = 16
SAVE_EVERY = 5
DATA = "stdlib.tokens"
LAYOUT = Layout(tp=1, pp=1, dp=2, micro_batch=8)


def plain_loop(model: Model, options: TrainOptions) -> Callable[[Batch], float]:
    """One step of a loop without any of our machinery but the module itself."""
    module = Transformer(model, StageShape.whole(model))
    module.tie()
    wrapped = DistributedDataParallel(module)
    betas = (options.beta1, options.beta2)
    optimizer = torch.optim.AdamW(module.parameters(), lr=options.lr, betas=betas, weight_decay=options.weight_decay)

    def step(batch: Batch) -> float:
        loss = F.cross_entropy(wrapped(batch.ids).flatten(0, 1), batch.targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), options.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def our_session(axes: Axes, folder: Path, *, every: int) -> Session:
    """Set up what the recipe's step needs, with a checkpoint interval in steps (0: never)."""
    options = RunOptions(train=replace(ADAMW, steps=10**6, checkpoint_every=every))
    plan = make_plan(LAYOUT, model=GPT_TINY, options=options, global_batch=GLOBAL_BATCH)
    rank_env = RankEnv(axes.rank, 2, axes.rank, 2, 0, 0, plan=None, run_dir=folder)
    session = Session(plan, rank_env, folder, torch.device("cpu"), axes, Pulse(), time.monotonic())
    sinks = [MetricsFile(RunFolder(folder).metrics), Terminal(io.StringIO(), total=10**6)]
    session.__dict__["tracker"] = Tracker(sinks if session.is_main else [])
    return session


def measure(rank: int, *, blocks: int, steps: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of CPU and of the clock that a block of each loop takes, in turn, without the first as a warm-up.

    CPU seconds are this rank's own, of all its threads: they hardly depend on what else the machine does.
    """
    engine, axes = make_engine(
        LAYOUT, rank, options=ADAMW, model=GPT_TINY, optimizer="adamw", global_batch=GLOBAL_BATCH
    )
    batches = BatchSource(
        TokenFile(folder / DATA), seq_len=GPT_TINY.seq_len, global_batch=GLOBAL_BATCH, dp_rank=rank, dp=2, seed=0
    )
    by_hand = plain_loop(GPT_TINY, ADAMW)
    sessions = {name: our_session(axes, folder / name, every=n) for name, n in (("engine", 0), ("saving", SAVE_EVERY))}
    numbers = {name: itertools.count() for name in ("plain", *sessions)}

    def block(name: str) -> None:
        for step in itertools.islice(numbers[name], steps):
            if name == "plain":
                by_hand(batches(step))
            else:
                one_step(sessions[name], engine, batches, Progress(0), step)
        if name == "saving":
            sessions[name].checkpoints.wait()

    times: dict[str, list[float]] = {f"{name}{kind}": [] for name in numbers for kind in ("", " cpu")}
    for _ in range(blocks + 1):
        for name in numbers:
            begin, cpu = time.perf_counter(), time.process_time()
            block(name)
            times[name].append(time.perf_counter() - begin)
            times[f"{name} cpu"].append(time.process_time() - cpu)
    sessions["saving"].checkpoints.close()
    return {name: seconds[1:] for name, seconds in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--steps", type=int, default=5)
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_token_file(folder / DATA, standard_library_tokens(), vocab=GPT_TINY.vocab)
        for kind in ("engine", "saving"):
            (folder / kind).mkdir()
        times = run_ranks(2, lambda rank: measure(rank, blocks=parsed.blocks, steps=parsed.steps, folder=folder))[0]
    step_ms = {name: 1e3 * median(seconds) / parsed.steps for name, seconds in times.items()}
    ratios = {
        f"{name}{kind}": median(
            plain / own for plain, own in zip(times[f"plain{kind}"], times[f"{name}{kind}"], strict=True)
        )
        for name in ("engine", "saving")
        for kind in ("", " cpu")
    }
    print("ms a step:", {name: round(value, 2) for name, value in step_ms.items()})
    document = {
        "tokens_per_s_ratio": round(ratios["engine"], 3),
        "tokens_per_s_ratio_saving_every_5_steps": round(ratios["saving"], 3),
        "cpu_ratio": round(ratios["engine cpu"], 3),
        "cpu_ratio_saving_every_5_steps": round(ratios["saving cpu"], 3),
        "step_ms": step_ms,
        "goal": {"tokens_per_s_ratio": 0.97, "tokens_per_s_ratio_saving_every_5_steps": 0.9},
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
