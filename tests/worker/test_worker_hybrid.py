"""Hybrid sharding: shards inside an NVSwitch domain, replicas across, and the same loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import TINY, cpu_cluster, make_plan, run_ranks
from training import SGD, curves, steps

from launcher.errors import InputError
from launcher.layout import Layout
from launcher.layout.hybrid import shard_size
from launcher.planner.record import Plan
from launcher.worker.engines.choose import build_engine
from launcher.worker.engines.engine import EngineContext
from launcher.worker.parallel.mesh import build_mesh


def plan_on(layout: Layout, *, domain: int) -> Plan:
    plan = make_plan(layout, model=TINY, optimizer="sgd")
    return replace(plan, job=replace(plan.job, cluster=cpu_cluster(layout.world_size, domain=domain)))


@pytest.mark.parametrize(
    ("layout", "domain", "size"),
    [
        (Layout(tp=1, pp=1, dp=8), 4, 4),
        (Layout(tp=2, pp=1, dp=4), 4, 2),
        (Layout(tp=1, pp=2, dp=4, axis_order="dp-tp-cp-pp"), 2, 2),
        (Layout(tp=1, pp=1, dp=8), 8, 8),
    ],
)
def test_shards_are_as_many_as_data_parallel_peers_in_a_domain(layout: Layout, domain: int, size: int) -> None:
    assert shard_size(layout, plan_on(layout, domain=domain).placement) == size


@pytest.mark.parametrize(
    ("layout", "why"), [(Layout(tp=2, pp=1, dp=4), "runs of 1"), (Layout(tp=1, pp=1, dp=4, cp=2), "layout.cp=1")]
)
def test_a_layout_whose_peers_all_sit_apart_or_cut_sequences_is_refused(layout: Layout, why: str) -> None:
    with pytest.raises(InputError, match=why):
        shard_size(layout, plan_on(layout, domain=2).placement)


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_hybrid_sharding_trains_as_one_process_and_holds_a_half(zero_stage: int) -> None:
    one = {"one": (Layout(tp=1, pp=1, dp=1, micro_batch=8), {"model": TINY, "optimizer": "sgd", "num_steps": 5})}
    right = curves(1, one)["one"]
    layout = Layout(tp=2, pp=1, dp=4, zero_stage=zero_stage)
    plan = plan_on(layout, domain=4)

    def body(rank: int) -> dict[str, Any]:
        axes = build_mesh(plan.grid, rank=rank, device_type="cpu", shard_within=shard_size(layout, plan.placement))
        engine = build_engine(EngineContext(plan, SGD, axes, torch.device("cpu"), Path()))
        weight = engine.state(loading=False)["model"]["layers.0.mlp.up.weight"]
        return {"curve": steps(engine, axes, range(5), model=TINY, lr=SGD.lr), "held": weight.to_local().numel()}

    for found in run_ranks(8, body):
        assert found["held"] == TINY.hidden * TINY.ffn_hidden // (2 * 2)  # tp × the domain's half of dp
        assert [loss for loss, _ in found["curve"]] == pytest.approx([loss for loss, _ in right], abs=1e-5)
        assert [norm for _, norm in found["curve"]] == pytest.approx([norm for _, norm in right], abs=1e-4)
