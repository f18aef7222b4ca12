"""Shared experts and first layers without experts: parameters, FLOPs, memory and time."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from shapes import cluster

from launcher.cost import CostModel
from launcher.cost.estimate import Estimate
from launcher.cost.ranks import pipeline_ranks
from launcher.errors import InputError
from launcher.layout import Layout
from launcher.layout.job import Job
from launcher.model import Model, Training
from launcher.schema import read
from launcher.stacks import stack_of

SPARSE = Model(
    "sparse", hidden=1024, layers=16, heads=8, ffn_hidden=512, gated_mlp=True, vocab=32768, num_experts=16,
    experts_per_token=4, shared_ffn_hidden=1024, dense_layers=3, dense_ffn_hidden=4096,
)  # fmt: skip


def asked(model: Model = SPARSE) -> Job:
    return Job(cluster(), model, Training(global_batch=64), stack_of("megatron_lm"))


def laid(**degrees: Any) -> Layout:
    return Layout(**{"tp": 1, "pp": 1, "dp": 1, "micro_batch": 1, **degrees})


@pytest.mark.parametrize(("pp", "virtual_stages"), [(1, 1), (2, 1), (4, 1), (8, 1), (4, 2), (2, 4)])
def test_the_ranks_of_a_pipeline_hold_the_models_parameters(pp: int, virtual_stages: int) -> None:
    ranks = pipeline_ranks(asked(), laid(pp=pp, virtual_stages=virtual_stages))
    assert sum(rank.total for rank in ranks.parameters) == SPARSE.params
    assert sum(ranks.dense_layers) == SPARSE.dense_layers
    half = pipeline_ranks(asked(), laid(pp=pp, virtual_stages=virtual_stages, ep=2, dp=2))
    experts = (SPARSE.layers - SPARSE.dense_layers) * SPARSE.num_experts * SPARSE.mlp_params
    assert sum(rank.experts for rank in half.parameters) == experts / 2


@pytest.mark.parametrize("dense_layers", [0, 1, 3, 5, 9])
@pytest.mark.parametrize(("pp", "virtual_stages"), [(4, 1), (8, 1), (4, 2)])
def test_memory_is_that_of_the_fullest_rank(dense_layers: int, pp: int, virtual_stages: int) -> None:
    job, layout = asked(replace(SPARSE, dense_layers=dense_layers)), laid(pp=pp, virtual_stages=virtual_stages)
    costs = CostModel(job)
    every = [sum(costs.stage_parts(layout, stage).values()) for stage in range(pp)]
    assert costs.memory(layout).total_bytes == max(every)


def test_flops_are_those_of_each_layer() -> None:
    tokens = 4096
    alone = replace(SPARSE, dense_layers=0, num_experts=0, experts_per_token=0, shared_ffn_hidden=0)
    dense = replace(alone, ffn_hidden=SPARSE.dense_ffn_hidden).layer_forward_flops(tokens=tokens)
    sparse = SPARSE.layer_forward_flops(tokens=tokens)
    assert SPARSE.layers_forward_flops(tokens=tokens) == pytest.approx(3 * dense + 13 * sparse, rel=1e-12)
    wide = replace(alone, ffn_hidden=4 * 512 + 1024).layer_forward_flops(tokens=tokens)
    assert sparse == wide + 2 * tokens * SPARSE.hidden * SPARSE.num_experts


def test_wider_shared_experts_take_more_time_memory_and_traffic() -> None:
    layout = laid(tp=2, ep=2, dp=4, sequence_parallel=True)
    found = [
        CostModel(asked(replace(SPARSE, shared_ffn_hidden=width))).estimate(layout) for width in (0, 1024, 2048, 4096)
    ]
    for less, more in pairwise(found):
        assert more.step_time_s > less.step_time_s
        assert more.memory_bytes_per_gpu > less.memory_bytes_per_gpu
        assert _traffic_s(more) > _traffic_s(less)


def _traffic_s(found: Estimate) -> float:
    return found.time["dp_comm"] + found.time["dp_comm_hidden"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"dense_layers": 2}, "model.dense_layers=2 is about a mixture of experts"),
        ({"shared_ffn_hidden": 8}, "model.shared_ffn_hidden=8 is about a mixture of experts"),
        ({"num_experts": 4, "experts_per_token": 1, "dense_layers": 4}, "leaves no layer with experts"),
        ({"dense_ffn_hidden": 8}, "model.dense_ffn_hidden is the width of model.dense_layers"),
    ],
)
def test_keys_of_experts_without_experts_are_refused(keys: dict[str, int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read(Model, {"name": "x", "hidden": 64, "layers": 4, "heads": 4, **keys}, "model")
