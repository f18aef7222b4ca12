"""What each rank of a pipeline holds: layers and parameters, and which ranks can be the worst."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from launcher.cost.parameters import RankParameters, end_parameters, stage_parameters
from launcher.cost.traffic import RankStage
from launcher.layout import Layout
from launcher.layout.job import Job
from launcher.layout.split import default_split
from launcher.model import Model


class PipelineRanks(NamedTuple):
    """What the pipeline ranks hold. `heaviest`: the most parameters of one; `distinct`: each kind of rank once.

    `fullest`: the ranks that may need most memory. A rank holds no more micro-batches than the one before it, so that
    of those between the ends only one with more layers than all before it can need more.
    """

    layers: tuple[int, ...]
    dense_layers: tuple[int, ...]  # of these, those with an MLP in place of experts
    parameters: tuple[RankParameters, ...]
    heaviest: RankParameters
    heaviest_stage: RankStage
    distinct: tuple[RankParameters, ...]
    fullest: tuple[int, ...]


def pipeline_ranks(job: Job, layout: Layout) -> PipelineRanks:
    """The ranks of a layout's pipeline; layers count over all virtual stages of a rank."""
    model, pp, tp = job.model, layout.pp, layout.tp
    split = layout.layer_split or default_split(job, num_stages=pp * layout.virtual_stages)
    layers = split if layout.virtual_stages == 1 else tuple(sum(split[rank::pp]) for rank in range(pp))
    dense = dense_layers_of_ranks(model, split, pp)
    held = list(zip(layers, dense, strict=True))
    kinds = {counts: stage_parameters(model, *counts, tp=tp, ep=layout.ep) for counts in set(held)}
    parameters = [kinds[counts] for counts in held]
    for rank in {0, pp - 1}:
        ends = end_parameters(model, tp=tp, first=rank == 0, last=rank == pp - 1)
        parameters[rank] = RankParameters(parameters[rank].dense + ends, parameters[rank].experts, ends)
    heaviest = max(range(pp), key=lambda rank: parameters[rank].total)
    middle = [rank for rank in range(1, pp - 1) if layers[rank] > max(layers[1:rank], default=0)]
    if model.dense_layers:  # the first ranks hold the smallest layers
        sparse = [all_layers - without for all_layers, without in held]
        middle += [rank for rank in range(1, pp - 1) if sparse[rank] > max(sparse[1:rank], default=0)]
    return PipelineRanks(
        layers,
        dense,
        tuple(parameters),
        parameters[heaviest],
        RankStage(layers[heaviest], heaviest == 0, heaviest == pp - 1, layout.virtual_stages, dense[heaviest]),
        tuple(dict.fromkeys(parameters)),
        tuple(dict.fromkeys((0, *middle, pp - 1))),
    )


def dense_layers_of_ranks(model: Model, split: Sequence[int], pp: int) -> tuple[int, ...]:
    """How many of the model's first layers without experts each pipeline rank holds; `split`: layers by stage."""
    counts = [0] * pp
    if model.dense_layers:
        begin = 0
        for stage, layers in enumerate(split):
            counts[stage % pp] += min(layers, max(0, model.dense_layers - begin))
            begin += layers
    return tuple(counts)
