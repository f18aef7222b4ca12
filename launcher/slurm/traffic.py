"""How many bytes each pair of plan nodes exchanges in a step: the messages of the cost model, laid on rank pairs.

Collectives run over rings in rank order, as NCCL does between nodes; an all-to-all reaches every rank of its group.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import product

from launcher.cost.ranks import pipeline_ranks
from launcher.cost.traffic import SEND, SEND_BACK, Message, MessageRules, RankStage, rank_messages, rules_of
from launcher.planner import Plan

Traffic = dict[tuple[int, int], float]
Edge = tuple[int, int, float]


def node_traffic(plan: Plan) -> Traffic:
    """(node a, node b) with a < b → bytes between them in one step; pairs that do not talk are absent."""
    found: Traffic = defaultdict(float)
    per_node = plan.job.cluster.node.num_gpus
    for a, b, num_bytes in rank_edges(plan):
        node_a, node_b = a // per_node, b // per_node
        if node_a != node_b:
            found[(node_a, node_b) if node_a < node_b else (node_b, node_a)] += num_bytes
    return dict(found)


def rank_edges(plan: Plan, rules: MessageRules | None = None) -> Iterator[Edge]:
    """(rank, rank, bytes from the first to the second in one step); they sum to what all ranks send.

    `rules`: of the software that trains; those of the estimate by default.
    """
    for stage, messages in enumerate(stage_messages(plan, rules)):
        for kind, num_bytes in _by_pattern(messages).items():
            if num_bytes:
                yield from _edges(plan, stage, kind, num_bytes)


def stage_messages(plan: Plan, rules: MessageRules | None = None) -> tuple[tuple[Message, ...], ...]:
    """Every message of a rank in a step, for each pipeline rank."""
    job, layout = plan.job, plan.layout
    rules, last = rules or rules_of(job, layout), layout.pp - 1
    stages = [
        RankStage(layers, first=rank == 0, last=rank == last, chunks=layout.virtual_stages)
        for rank, layers in enumerate(pipeline_ranks(job.model, layout).layers)
    ]
    kinds = {stage: rank_messages(job, layout, stage, rules) for stage in set(stages)}
    return tuple(kinds[stage] for stage in stages)


def _by_pattern(messages: Iterable[Message]) -> dict[tuple[str, str], float]:
    """(axis, who sends to whom) → bytes that a rank sends."""
    found: dict[tuple[str, str], float] = defaultdict(float)
    for message in messages:
        pattern = message.collective if message.collective in (SEND, SEND_BACK, "all_to_all") else "ring"
        found[message.axis, pattern] += message.sent_bytes
    return found


def _edges(plan: Plan, stage: int, kind: tuple[str, str], num_bytes: float) -> Iterator[Edge]:
    axis, pattern = kind
    pp, stride = plan.layout.pp, plan.grid.strides["pp"]
    if pattern in (SEND, SEND_BACK):
        to = (stage + (1 if pattern == SEND else -1)) % pp
        yield from ((rank, rank + (to - stage) * stride, num_bytes) for rank in _ranks(plan, stage))
    elif axis == "pp":  # the two ranks of a tied table
        other = pp - 1 - stage
        yield from ((rank, rank + (other - stage) * stride, num_bytes) for rank in _ranks(plan, stage))
    elif pattern == "all_to_all":
        for group in groups(plan, stage, axis):
            yield from ((a, b, num_bytes / (len(group) - 1)) for a, b in product(group, group) if a != b)
    else:
        for group in groups(plan, stage, axis):
            yield from ((a, b, num_bytes) for a, b in zip(group, group[1:] + group[:1], strict=True))


def groups(plan: Plan, stage: int, axis: str) -> Iterator[tuple[int, ...]]:
    """The groups of a message's axis among the ranks of one pipeline stage, each in rank order."""
    layout, strides = plan.layout, plan.grid.strides
    sharing = max(1, layout.shards // layout.cp)
    size = {"tp": layout.tp, "cp": layout.cp, "dp": layout.dp, "ep": layout.ep, "edp": layout.dp // layout.ep}
    size |= {"sdp": sharing, "rdp": layout.dp // sharing}
    step = strides | {"edp": strides["dp"] * layout.ep, "sdp": strides["dp"], "rdp": strides["dp"] * sharing}
    spans = (axis, "cp") if axis in ("dp", "edp", "sdp") else (axis,)
    parts = next((pair for pair in (("ep", "edp"), ("sdp", "rdp")) if axis in pair), ("dp",))
    members = _offsets([(step[part], size[part]) for part in spans])
    for first in _offsets([(step[part], size[part]) for part in ("tp", "cp", *parts) if part not in spans]):
        start = first + stage * strides["pp"]
        yield tuple(start + member for member in members)


def _offsets(axes: list[tuple[int, int]]) -> list[int]:
    """Every sum of one multiple below `degree` of each stride, ascending."""
    found = [0]
    for stride, degree in axes:
        found = [base + stride * index for index in range(degree) for base in found]
    return sorted(found)


def _ranks(plan: Plan, stage: int) -> list[int]:
    strides, layout = plan.grid.strides, plan.layout
    return [
        stage * strides["pp"] + offset
        for offset in _offsets([(strides[axis], layout.degree(axis)) for axis in ("tp", "cp", "dp")])
    ]
