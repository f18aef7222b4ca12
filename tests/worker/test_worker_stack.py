"""The engines are built as the profile `launcher` says, which the planner counts by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks import LLAMA, make_plan, run_ranks
from torch.utils._python_dispatch import TorchDispatchMode
from training import ADAMW, make_engine, random_batch

from launcher.errors import InputError
from launcher.layout import Layout
from launcher.planner.options import TrainOptions
from launcher.stacks import stack_of
from launcher.worker.engines.choose import build_engine
from launcher.worker.engines.engine import EngineContext


class Seen(TorchDispatchMode):
    """Counts operators by name, and remembers the dtypes of what is reduced."""

    def __init__(self) -> None:
        super().__init__()
        self.count: dict[str, int] = {}
        self.reduced: set[str] = set()

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        name = func.overloadpacket.__name__
        self.count[name] = self.count.get(name, 0) + 1
        if "reduce_scatter" in name:
            self.reduced |= {str(t.dtype) for t in args if isinstance(t, torch.Tensor)}
        return func(*args, **(kwargs or {}))


def seen_by(layout: Layout, rank: int) -> dict[str, object]:
    """What one step of a rank runs."""
    engine, axes = make_engine(layout, rank, options=ADAMW, model=LLAMA, dtype="bf16")
    batch = random_batch(axes, model=LLAMA, global_batch=8, step=0)
    with Seen() as seen:
        engine.train_step(batch, lr=1e-3)
    return {"count": seen.count, "reduced": sorted(seen.reduced)}


@pytest.fixture(scope="module")
def steps() -> dict[str, dict[str, object]]:
    plain = Layout(tp=1, pp=1, dp=2, micro_batch=4, zero_stage=3)
    layouts = {"plain": plain, "full": replace(plain, recompute="full")}
    return run_ranks(2, lambda rank: {name: seen_by(layout, rank) for name, layout in layouts.items()})[0]


def test_recomputation_stops_early_as_the_profile_says(steps: dict[str, dict[str, object]]) -> None:
    products = {name: found["count"]["mm"] for name, found in steps.items()}
    repeated = (products["full"] - products["plain"]) / LLAMA.layers
    assert repeated == (6 if stack_of("launcher").recompute_stops_early else 7)  # of q, k, v, o, gate, up, down


def test_no_dropout_runs_as_the_profile_says(steps: dict[str, dict[str, object]]) -> None:
    assert not stack_of("launcher").calls_dropout
    assert not [name for name in steps["plain"]["count"] if "dropout" in name]


def test_gradients_are_reduced_in_the_dtype_of_the_profile(steps: dict[str, dict[str, object]]) -> None:
    job = make_plan(Layout(tp=1, pp=1, dp=1), dtype="bf16").job
    assert job.stack.reduces_in(job.training) == "fp32"
    assert steps["plain"]["reduced"] in ([], ["torch.float32"])


@pytest.mark.parametrize(
    ("stack", "why"),
    [
        (stack_of("megatron_lm"), "stack=megatron_lm"),
        (stack_of("launcher", loss_parallel=False), "stack.loss_parallel"),
    ],
)
def test_a_plan_for_other_software_is_refused_at_the_start(stack: object, why: str) -> None:
    plan = make_plan(Layout(tp=1, pp=1, dp=1))
    plan = replace(plan, job=replace(plan.job, stack=stack))
    with pytest.raises(InputError, match=why):
        build_engine(EngineContext(plan, TrainOptions(), None, torch.device("cpu"), Path()))
