"""How many bytes each pair of plan nodes sends each other in a training step.

Volumes are those of ring collectives and of point-to-point stages (Narayanan et al. 2021, section 3; Thakur et al.
2005 for the ring); they only rank placements against each other, the step time is the cost model's affair.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from launcher.layout.split import balanced_split
from launcher.planner import Plan
from launcher.units import DTYPE_BYTES

Traffic = dict[tuple[int, int], float]


def node_traffic(plan: Plan) -> Traffic:
    """(node a, node b) with a < b → bytes between them in one step; pairs that do not talk are absent."""
    found: Traffic = defaultdict(float)
    slots = [plan.placement.slot(rank).node for rank in range(plan.grid.size)]
    for a, b, num_bytes in _edges(plan):
        node_a, node_b = sorted((slots[a], slots[b]))
        if node_a != node_b:
            found[node_a, node_b] += num_bytes
    return dict(found)


def _edges(plan: Plan) -> Iterator[tuple[int, int, float]]:
    layout, grid = plan.layout, plan.grid
    for axis, num_bytes in (("tp", _tensor_bytes(plan)), ("cp", _context_bytes(plan)), ("dp", _gradient_bytes(plan))):
        if layout.degree(axis) > 1:
            for group in grid.groups(axis):
                yield from _ring(group, num_bytes)
    if layout.pp > 1:
        for group in grid.groups("pp"):
            yield from _chain(group, _stage_bytes(plan), wraps=layout.virtual_stages > 1)
    if layout.ep > 1:
        for group in grid.groups("dp"):
            for first in range(0, len(group), layout.ep):
                yield from _all_pairs(group[first : first + layout.ep], _expert_bytes(plan))


def _ring(group: tuple[int, ...], num_bytes: float) -> Iterator[tuple[int, int, float]]:
    """A ring all-reduce of `num_bytes`: each link carries 2 (n-1)/n of it."""
    n = len(group)
    links = n if n > 2 else 1
    share = 2 * (n - 1) / n * num_bytes * n / links  # two ranks send both ways over their one link
    for i in range(links):
        yield group[i], group[(i + 1) % n], share


def _chain(group: tuple[int, ...], num_bytes: float, *, wraps: bool) -> Iterator[tuple[int, int, float]]:
    for a, b in pairwise(group):
        yield a, b, num_bytes
    if wraps and len(group) > 2:
        yield group[-1], group[0], num_bytes


def _all_pairs(group: tuple[int, ...], num_bytes: float) -> Iterator[tuple[int, int, float]]:
    for i, a in enumerate(group):
        for b in group[i + 1 :]:
            yield a, b, 2 * num_bytes / len(group)


def _micro_batches(plan: Plan) -> int:
    return plan.layout.num_micro_batches(plan.job.training.global_batch)


def _activation_bytes(plan: Plan) -> float:
    """One micro-batch between two layers, on one context-parallel rank."""
    model, layout = plan.job.model, plan.layout
    return layout.micro_batch * model.seq_len / layout.cp * model.hidden * plan.job.training.dtype_bytes


def _layers(plan: Plan) -> int:
    """Layers of the fullest stage."""
    layout = plan.layout
    split = layout.layer_split or balanced_split(plan.job.model, num_stages=layout.pp * layout.virtual_stages)
    return max(sum(split[stage :: layout.pp]) for stage in range(layout.pp))


def _tensor_bytes(plan: Plan) -> float:
    """Two all-reduces forward and two backward in every layer (Shoeybi et al. 2019, figure 4)."""
    return 4 * _layers(plan) * _micro_batches(plan) * _activation_bytes(plan)


def _context_bytes(plan: Plan) -> float:
    """Keys and values go round the ring forward, and with their gradients backward (Liu et al. 2023)."""
    model = plan.job.model
    return 3 * _layers(plan) * _micro_batches(plan) * _activation_bytes(plan) * model.kv_hidden / model.hidden


def _gradient_bytes(plan: Plan) -> float:
    """The gradients of one rank's share of the model."""
    shards = plan.layout.tp * plan.layout.pp
    return (
        plan.job.model.params
        / shards
        * DTYPE_BYTES[plan.job.training.reduces_in(plan.job.model, plan.layout.zero_stage)]
    )


def _stage_bytes(plan: Plan) -> float:
    """Activations forward and their gradients backward, once for each virtual stage."""
    layout = plan.layout
    share = layout.tp if layout.sequence_parallel else 1
    return 2 * layout.virtual_stages * _micro_batches(plan) * _activation_bytes(plan) / share


def _expert_bytes(plan: Plan) -> float:
    """Tokens to their experts and back, forward and backward."""
    visits = max(1, plan.job.model.experts_per_token)
    return 4 * visits * _layers(plan) * _micro_batches(plan) * _activation_bytes(plan)
