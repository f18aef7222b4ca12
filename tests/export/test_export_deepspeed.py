"""The exported DeepSpeed configuration is the one that our engine is given, and DeepSpeed reads the plan out of it."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import pytest
from ranks import TINY, make_plan, run_ranks
from training import OPTIONS, make_engine, steps

from launcher.export.deepspeed import CONFIG, write
from launcher.layout import Layout
from launcher.planner.record import RunOptions

# Whether it is there is asked without importing it, which takes 3 s, in every process that collects tests.
pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("deepspeed") is None, reason="no DeepSpeed here")]

Case = tuple[Layout, dict[str, Any]]
PLANS: dict[str, Case] = {
    "dp2": (Layout(tp=1, pp=1, dp=2, micro_batch=2), {}),
    "tp2 zero1": (Layout(tp=2, pp=1, dp=1, zero_stage=1, micro_batch=4), {}),
    "dp2 zero2 bf16": (Layout(tp=1, pp=1, dp=2, zero_stage=2), {"dtype": "bf16"}),
    "dp2 zero3": (Layout(tp=1, pp=1, dp=2, zero_stage=3, micro_batch=2), {}),
    "dp2 zero3 offloaded": (Layout(tp=1, pp=1, dp=2, zero_stage=3, micro_batch=2, offload_optimizer=True), {}),
    "pp2 zero1": (Layout(tp=1, pp=2, dp=1, zero_stage=1, micro_batch=2), {}),
}


def exported(case: Case) -> dict[str, Any]:
    layout, training = case
    options = RunOptions(train=OPTIONS["sgd"])
    plan = make_plan(layout, options=options, engine="deepspeed", optimizer="sgd", **training)
    return json.loads(write(plan).files[CONFIG])  # type: ignore[no-any-return]


def given_to_the_engine(rank: int) -> dict[str, list[Any]]:
    """By plan: the configuration that DeepSpeed's engine holds after one step, and what it read out of it."""
    found = {}
    for name, (layout, training) in PLANS.items():
        settings = {"model": TINY, "engine": "deepspeed", "optimizer": "sgd", **training}
        engine, axes = make_engine(layout, rank, options=OPTIONS["sgd"], **settings)
        steps(engine, axes, range(1), model=TINY, lr=0.1)
        inner = engine.inner  # type: ignore[attr-defined]
        read = {
            "micro_batch": inner.train_micro_batch_size_per_gpu(),
            "micro_batches": inner.gradient_accumulation_steps(),
            "global_batch": inner.train_batch_size(),
            "zero_stage": inner.zero_optimization_stage(),
            "offloads": inner.zero_use_cpu_optimizer(),
            "bf16": inner.bfloat16_enabled(),
            "grad_clip": inner.gradient_clipping(),
            "sums_in": [str(inner.get_data_types()[1]), str(inner.communication_data_type)],
        }
        found[name] = [json.loads(json.dumps(inner._config._param_dict)), read]
    return found


def plan_of(case: Case) -> dict[str, Any]:
    layout, training = case
    return {
        "micro_batch": layout.micro_batch,
        "micro_batches": layout.num_micro_batches(8),
        "global_batch": 8,
        "zero_stage": layout.zero_stage,
        "offloads": layout.offload_optimizer,
        "bf16": training.get("dtype") == "bf16",
        "grad_clip": OPTIONS["sgd"].grad_clip,
        "sums_in": ["torch.float32"] * 2,  # as the stack `launcher` is planned: grad_reduce_dtype=fp32
    }


def test_the_export_is_what_the_real_engine_was_given_and_it_reads_the_plan() -> None:
    import deepspeed.runtime.zero.muon.original_muon  # noqa: F401  before the forks: it takes a second in each rank

    wanted = {name: [exported(case), plan_of(case)] for name, case in PLANS.items()}
    for given in run_ranks(2, given_to_the_engine):
        assert given == wanted
