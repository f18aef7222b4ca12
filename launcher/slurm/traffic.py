"""Bytes that each pair of plan nodes exchanges per step: the messages of the cost model, mapped to ranks and nodes.

Collectives run over rings in rank order, as NCCL does between nodes; an all-to-all reaches every rank of its group.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise, product
from math import prod

from launcher.cost.ranks import pipeline_ranks
from launcher.cost.traffic import SEND, SEND_BACK, Message, MessageRules, RankStage, rank_messages, rules_of
from launcher.planner import Plan
from launcher.slurm.node_grid import all_parts, groups, node_grid, spanned

Edge = tuple[int, int, float]
ALL_TO_ALL, RING = "all_to_all", "ring"


@dataclass(frozen=True)
class Lines:
    """The groups of an axis over nodes: rings (or open chains) through every line of the node grid along `axes`.

    `num_bytes`: lower bound over each edge of a line, by the pipeline stage (over nodes) of the line.
    """

    axes: frozenset[str]
    num_bytes: tuple[float, ...]
    closed: bool = True


@dataclass(frozen=True)
class NodeTraffic:
    """`edges`: (node a, node b) with a < b → bytes between them in one step; pairs without traffic are absent.

    `grid`: axis → degree, fastest first, if the nodes of the plan form a grid. `lines` then have disjoint edges; in
    addition, `closing` bytes pass between the first and the last node of each pipeline.
    """

    edges: Mapping[tuple[int, int], float]
    grid: Mapping[str, int]
    lines: tuple[Lines, ...] = ()
    closing: float = 0.0


def node_traffic(plan: Plan) -> NodeTraffic:
    """Return the traffic between the nodes of a plan."""
    found: dict[tuple[int, int], float] = defaultdict(float)
    per_node = plan.job.cluster.node.num_gpus
    stages = [_by_pattern(messages) for messages in stage_messages(plan)]
    for stage, patterns in enumerate(stages):
        for (axis, pattern), num_bytes in patterns.items():
            # Ranks with the same local rank belong to groups of the same nodes.
            alike = Counter(tuple(rank // per_node for rank in group) for group in _groups(plan, stage, axis, pattern))
            for nodes, count in alike.items():
                for (a, b), carried in _between(nodes, pattern, num_bytes).items():
                    found[(a, b) if a < b else (b, a)] += count * carried
    grid = node_grid(plan.layout, gpus_per_node=per_node)
    if not grid:
        return NodeTraffic(dict(found), grid)
    pipeline, closing = _pipeline_lines(plan, grid["pp"], stages)
    return NodeTraffic(dict(found), grid, (*_lines(plan, grid, stages), *pipeline), closing)


def _between(nodes: tuple[int, ...], pattern: str, num_bytes: float) -> Mapping[tuple[int, int], float]:
    """Return the bytes between the nodes of one group."""
    found: dict[tuple[int, int], float] = defaultdict(float)
    if pattern == ALL_TO_ALL:
        members = Counter(nodes)
        pair = 2 * num_bytes / (len(nodes) - 1)
        return {(a, b): members[a] * members[b] * pair for a, b in combinations(members, 2)}
    for a, b in _hops(nodes, pattern):
        if a != b:
            found[a, b] += num_bytes
    return found


def _hops(members: tuple[int, ...], pattern: str) -> Iterable[tuple[int, int]]:
    return zip(members, members[1:] + members[:1], strict=True) if pattern == RING else [(members[0], members[-1])]


def rank_edges(plan: Plan, rules: MessageRules | None = None) -> Iterator[Edge]:
    """Yield (rank, rank, bytes from the first to the second in one step); they sum to what all ranks send.

    `rules`: of the training software; by default those of the estimate.
    """
    for stage, messages in enumerate(stage_messages(plan, rules)):
        for (axis, pattern), num_bytes in _by_pattern(messages).items():
            for group in _groups(plan, stage, axis, pattern):
                if pattern == ALL_TO_ALL:
                    yield from ((a, b, num_bytes / (len(group) - 1)) for a, b in product(group, group) if a != b)
                else:
                    yield from ((a, b, num_bytes) for a, b in _hops(group, pattern))


def stage_messages(plan: Plan, rules: MessageRules | None = None) -> tuple[tuple[Message, ...], ...]:
    """Return every message of a rank in a step, for each pipeline rank."""
    job, layout = plan.job, plan.layout
    rules, last = rules or rules_of(job, layout), layout.pp - 1
    ranks = pipeline_ranks(job, layout)
    stages = [
        RankStage(layers, rank == 0, rank == last, layout.virtual_stages, dense_layers)
        for rank, (layers, dense_layers) in enumerate(zip(ranks.layers, ranks.dense_layers, strict=True))
    ]
    kinds = {stage: rank_messages(job, layout, stage, rules) for stage in set(stages)}
    return tuple(kinds[stage] for stage in stages)


def _by_pattern(messages: Iterable[Message]) -> dict[tuple[str, str], float]:
    """Map (axis, pattern) to the bytes that a rank sends."""
    found: dict[tuple[str, str], float] = defaultdict(float)
    for message in messages:
        known = message.collective if message.collective in (SEND, SEND_BACK, ALL_TO_ALL) else RING
        pattern = "tied" if (message.axis, known) == ("pp", RING) else known
        found[message.axis, pattern] += message.sent_bytes
    return {kind: num_bytes for kind, num_bytes in found.items() if num_bytes}


def _groups(plan: Plan, stage: int, axis: str, pattern: str) -> Iterator[tuple[int, ...]]:
    """Yield the groups of a message among the ranks of one stage; for a send, sender and receiver."""
    if axis != "pp":
        yield from groups(plan.layout, stage, axis)
        return
    pp, stride = plan.layout.pp, plan.grid.strides["pp"]
    other = {SEND: (stage + 1) % pp, SEND_BACK: (stage - 1) % pp, "tied": pp - 1 - stage}[pattern]
    for (rank,) in groups(plan.layout, stage, ""):
        yield rank, rank + (other - stage) * stride


def _lines(plan: Plan, grid: Mapping[str, int], stages: list[dict[tuple[str, str], float]]) -> tuple[Lines, ...]:
    """Return the lines of every axis except the pipeline's."""
    per_node, parts = plan.job.cluster.node.num_gpus, all_parts(plan.layout)
    found = []
    for axis in ("tp", "cp", "ep", "dp", "edp", "sdp", "rdp"):
        spans = spanned(plan.layout, axis, parts)
        nodes, ranks = prod(grid[name] for name in spans), prod(parts[name][1] for name in spans)
        if nodes < 2:
            continue
        inside = ranks // nodes
        ring = [num_bytes * per_node / inside for num_bytes in _over_nodes(stages, (axis, RING), grid["pp"])]
        met = _over_nodes(stages, (axis, ALL_TO_ALL), grid["pp"])
        pair = [num_bytes * per_node * inside * 2 / (ranks - 1) for num_bytes in met]
        # n nodes that all exchange with each other are (n - 1)/2 rings.
        whole = tuple(r + p * (nodes - 1) / 2 for r, p in zip(ring, pair, strict=True))
        found.append(Lines(frozenset(spans), whole))
    return tuple(lines for lines in found if any(lines.num_bytes))


def _over_nodes(stages: list[dict[tuple[str, str], float]], kind: tuple[str, str], nodes: int) -> list[float]:
    """Return the bytes of a rank by stage, averaged over the stages of a node."""
    each = [stage.get(kind, 0.0) for stage in stages]
    held = len(each) // nodes
    return [sum(each[node * held : (node + 1) * held]) / held for node in range(nodes)]


def _pipeline_lines(
    plan: Plan, nodes: int, stages: list[dict[tuple[str, str], float]]
) -> tuple[tuple[Lines, ...], float]:
    """Return the bytes of all edges of a pipeline, and the extra bytes between its first and last node."""
    if nodes < 2:
        return (), 0.0
    ranks = plan.job.cluster.node.num_gpus * nodes // plan.layout.pp  # of a node that send to the next one

    def of(stage: int, pattern: str) -> float:
        return stages[stage].get(("pp", pattern), 0.0) * ranks

    def lines(num_bytes: float, *, closed: bool = True) -> Lines:
        return Lines(frozenset({"pp"}), (num_bytes,) * nodes, closed)

    chain = min(of(a, SEND) + of(b, SEND_BACK) for a, b in pairwise(range(len(stages))))
    closing = of(-1, SEND) + of(0, SEND_BACK) + of(0, "tied") + of(-1, "tied")
    if nodes == 2:
        return (lines(chain + closing, closed=False),), 0.0
    ring = min(chain, closing)
    both = (lines(ring), lines(chain - ring, closed=False))
    return tuple(each for each in both if any(each.num_bytes)), closing - ring
