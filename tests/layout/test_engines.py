"""What an engine cannot train is refused before anything starts, with what is possible instead."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from launcher.cluster import Cluster, Gpu, Node
from launcher.layout import Layout
from launcher.layout.engines import engine_problems, job_problems, stack_problems
from launcher.layout.job import Job
from launcher.layout.legality import problems
from launcher.model import Model, Training
from launcher.stacks import stack_of

GPU = Gpu(name="cpu", kind="cpu", memory_bytes=2**31, hbm_bytes_per_s=1e10, num_sms=1)
MODEL = Model("m", hidden=64, layers=4, heads=4, kv_heads=2, ffn_hidden=128, vocab=256, seq_len=32)
TRAINING = Training(global_batch=8, dtype="fp32")


def job(model: Model = MODEL, **training: Any) -> Job:
    node = Node(GPU, 8, domains=(tuple(range(8)),), nvlink="nvswitch")
    settings = replace(TRAINING, **training)
    return Job(Cluster("cpu", 1, node=node), model, settings, stack_of("launcher", engine=settings.engine))


REFUSED_BY_ENGINE = [
    (Layout(tp=1, pp=2, dp=4, zero_stage=0), {}, "layout.zero_stage=1"),
    (Layout(tp=1, pp=2, dp=4, zero_stage=2), {}, "layout.zero_stage=1"),
    (Layout(tp=1, pp=2, dp=4, zero_stage=3), {}, "train.engine=torch"),
    (Layout(tp=1, pp=2, dp=4, zero_stage=1, schedule="gpipe"), {}, "layout.schedule=1f1b"),
    (Layout(tp=1, pp=2, dp=4, zero_stage=1, schedule="interleaved", virtual_stages=2), {}, "layout.virtual_stages=1"),
    (Layout(tp=1, pp=1, dp=8, zero_stage=0), {"dtype": "bf16"}, "layout.zero_stage=1"),
    (Layout(tp=1, pp=1, dp=8, zero_stage=0, offload_optimizer=True), {}, "layout.offload_optimizer=false"),
]


@pytest.mark.parametrize(("layout", "training", "remedy"), REFUSED_BY_ENGINE)
def test_deepspeed_combinations_that_fail_or_train_wrong_are_illegal(
    layout: Layout, training: dict[str, object], remedy: str
) -> None:
    found = engine_problems(job(engine="deepspeed", **training), layout)
    assert any(remedy in message for message in found)
    assert set(found) <= set(problems(job(engine="deepspeed", **training), layout))
    assert engine_problems(job(engine="torch", **training), layout) == []


@pytest.mark.parametrize(
    "layout",
    [Layout(tp=1, pp=2, dp=4, zero_stage=1), *(Layout(tp=2, pp=1, dp=4, zero_stage=stage) for stage in range(4))],
)
def test_deepspeed_combinations_that_train_right_are_allowed(layout: Layout) -> None:
    assert stack_problems(job(engine="deepspeed"), layout) == engine_problems(job(engine="deepspeed"), layout) == []


REFUSED_BY_STACK = [
    (job(), Layout(tp=4, pp=1, dp=2), "key-value heads"),
    (job(engine="deepspeed"), Layout(tp=1, pp=1, dp=4, cp=2), "layout.cp=1"),
    (job(), Layout(tp=1, pp=4, dp=2, micro_batch=4), "gpipe"),
    (job(global_batch=20), Layout(tp=1, pp=2, dp=4, schedule="zb_h1"), "multiple of pp=2"),
    (job(), Layout(tp=1, pp=1, dp=8, offload_optimizer=True), "train.engine=deepspeed"),
    (job(engine="deepspeed"), Layout(tp=2, pp=1, dp=4, sequence_parallel=True), "layout.sequence_parallel=false"),
    (job(), Layout(tp=1, pp=1, dp=4, cp=2, zero_stage=3, shard_group=4), "layout.shard_group=all"),
    (job(engine="deepspeed"), Layout(tp=1, pp=1, dp=8, zero_stage=3, shard_group=4), "train.engine=torch"),
    (job(), Layout(tp=1, pp=1, dp=8, recompute="op"), "none, selective or full"),
    (job(), Layout(tp=1, pp=1, dp=8, recompute="full", recompute_fraction=0.5), "recompute_fraction=1"),
]


@pytest.mark.parametrize(("asked", "layout", "remedy"), REFUSED_BY_STACK)
def test_what_our_engines_do_not_run_is_refused_with_what_they_do(asked: Job, layout: Layout, remedy: str) -> None:
    assert any(remedy in message for message in stack_problems(asked, layout))
    assert stack_problems(replace(asked, stack=stack_of("megatron_lm")), layout) == []


NEVER_TRAINED = [
    (job(replace(MODEL, num_experts=4, experts_per_token=2)), "mixtures of experts"),
    (job(dtype="fp16"), "train.dtype=bf16"),
    (job(dropout=0.1), "dropout"),
    (replace(job(), stack=stack_of("launcher", loss_parallel=False)), "stack.loss_parallel=false"),
]


@pytest.mark.parametrize(("asked", "why"), NEVER_TRAINED)
def test_what_our_engines_train_under_no_layout_is_refused(asked: Job, why: str) -> None:
    assert any(why in message for message in job_problems(asked))
    assert job_problems(job()) == job_problems(job(engine="deepspeed")) == []


def test_planning_for_another_trainer_stays_possible() -> None:
    """fp16 and experts are planned, though our recipe trains neither."""
    experts = replace(MODEL, num_experts=4, experts_per_token=2)
    assert engine_problems(job(experts, dtype="fp16"), Layout(tp=1, pp=1, dp=8)) == []
