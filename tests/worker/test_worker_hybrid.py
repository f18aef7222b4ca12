"""Shard groups: shards over some data-parallel neighbours, replicas across, and the same loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import SHALLOW, make_plan, run_each
from training import SGD, curves, steps

from launcher.layout import Layout
from launcher.worker.engines.choose import build_engine
from launcher.worker.engines.engine import EngineContext
from launcher.worker.parallel.mesh import build_mesh

ZERO_STAGES = (1, 3)
STEPS = 3  # the last loss follows two updates, the second with momentum


def trains(zero_stage: int) -> Callable[[int], dict[str, Any]]:
    """A rank's body: its curve, and how many numbers of a weight it holds."""
    layout = Layout(tp=2, pp=1, dp=4, zero_stage=zero_stage, shard_group=2)
    plan = make_plan(layout, model=SHALLOW, optimizer="sgd")

    def body(rank: int) -> dict[str, Any]:
        axes = build_mesh(plan.grid, rank=rank, device_type="cpu", shard_within=layout.shard_group)
        engine = build_engine(EngineContext(plan, SGD, axes, torch.device("cpu"), Path()))
        weight = engine.state(loading=False)["model"]["layers.0.mlp.up.weight"]
        return {"curve": steps(engine, axes, range(STEPS), model=SHALLOW, lr=SGD.lr), "held": weight.to_local().numel()}

    return body


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    """By rank, what it found with each ZeRO stage."""
    return run_each(8, {str(zero_stage): trains(zero_stage) for zero_stage in ZERO_STAGES})


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", ZERO_STAGES)
def test_a_shard_group_trains_as_one_process_and_holds_a_half(zero_stage: int, ranks: list[dict[str, Any]]) -> None:
    one = {"one": (Layout(tp=1, pp=1, dp=1, micro_batch=8), {"model": SHALLOW, "optimizer": "sgd", "num_steps": STEPS})}
    right = curves(1, one)["one"]
    for found in (rank[str(zero_stage)] for rank in ranks):
        assert found["held"] == SHALLOW.hidden * SHALLOW.ffn_hidden // (2 * 2)  # tp × a half of dp
        assert [loss for loss, _ in found["curve"]] == pytest.approx([loss for loss, _ in right], abs=1e-5)
        assert [norm for _, norm in found["curve"]] == pytest.approx([norm for _, norm in right], abs=1e-4)
