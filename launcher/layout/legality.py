"""Legality of a layout for a model on a cluster: every broken rule is reported, not just the first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from launcher.layout.degrees import RECOMPUTE_MODES, SCHEDULES, Layout
from launcher.layout.engines import engine_problems
from launcher.layout.grid import RankGrid, axis_order_problem
from launcher.layout.job import Job
from launcher.layout.placement import Placement
from launcher.layout.split import interleaves


class Problem(NamedTuple):
    """A broken rule: its short name, used for counting, and the full message for this layout."""

    rule: str
    message: str


ENGINE_RULE = "the engine cannot run it"
UNINTERLEAVED = "micro-batches do not divide for interleaving"
Rule = Callable[[Job, Layout], Iterator[Problem]]


def problems(job: Job, layout: Layout) -> list[str]:
    """Return a message for every rule that `layout` breaks; empty if it is legal."""
    return [problem.message for problem in broken_rules(job, layout)]


def broken_rules(job: Job, layout: Layout) -> list[Problem]:
    """Return every rule that `layout` breaks; empty if it is legal."""
    basic = [*_positive(job, layout), *_names(job, layout)]
    return basic or [problem for rule in RULES for problem in rule(job, layout)]


def divisors(number: int) -> list[int]:
    """Return all divisors, ascending."""
    low = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return low + [number // d for d in reversed(low) if d * d != number]


def tensor_parallel_choices(job: Job, *, across_domains: bool) -> list[int]:
    """Return every degree of tensor parallelism that the model's shape and the NVSwitch domains allow."""
    shaped = [
        tp for tp in divisors(job.model.heads) if tp <= job.cluster.max_ranks and not list(_tensor_shape(job, tp))
    ]
    if across_domains:
        return shaped
    joined = job.cluster.nvlink_nodes
    return [tp for tp in shaped if all(joined * len(domain) % tp == 0 for domain in job.cluster.node.domains)]


def _listed(numbers: Iterable[int]) -> str:
    all_numbers = [str(number) for number in numbers]
    return ", ".join(all_numbers[:12]) + (", …" if len(all_numbers) > 12 else "")


def _positive(job: Job, layout: Layout) -> Iterator[Problem]:
    for key in ("tp", "pp", "dp", "cp", "ep", "virtual_stages", "micro_batch"):
        value = getattr(layout, key)
        if value < 1:
            yield Problem("degree below 1", f"layout.{key}={value} must be at least 1: give a positive number or auto")


def _names(job: Job, layout: Layout) -> Iterator[Problem]:
    name = "unknown choice"
    if layout.recompute not in RECOMPUTE_MODES:
        yield Problem(name, f"layout.recompute={layout.recompute!r} is unknown: choose {', '.join(RECOMPUTE_MODES)}")
    if layout.schedule not in SCHEDULES:
        yield Problem(name, f"layout.schedule={layout.schedule!r} is unknown: choose {', '.join(SCHEDULES)}")
    if layout.zero_stage not in (0, 1, 2, 3):
        yield Problem(name, f"layout.zero_stage={layout.zero_stage} is unknown: choose 0, 1, 2 or 3")
    if not 0 < layout.recompute_fraction <= 1:
        yield Problem(
            name, f"layout.recompute_fraction={layout.recompute_fraction} must be above 0 and at most 1: 0.5 is half"
        )
    if message := axis_order_problem(layout.axis_order):
        yield Problem(name, message)


def _world(job: Job, layout: Layout) -> Iterator[Problem]:
    ranks, world, name = job.cluster.max_ranks, layout.world_size, job.cluster.name
    product = f"tp={layout.tp} × pp={layout.pp} × dp={layout.dp} × cp={layout.cp} = {world} ranks"
    if job.cluster.node.is_mig and world > 1:
        yield Problem(
            "MIG slices have no peer-to-peer",
            f"{product}, but MIG slices of {name} have no peer-to-peer: one job runs on one slice; "
            "set tp, pp, dp and cp to 1 (start one job per slice), or choose a cluster of whole GPUs",
        )
    elif world != ranks:
        yield Problem(
            "degrees do not fill the GPUs",
            f"{product} does not fill the {ranks} GPUs of {name} "
            f"({job.cluster.num_nodes} × {job.cluster.node.num_gpus}): change a degree, leave one auto, "
            "or set cluster.num_nodes / cluster.node.num_gpus",
        )


def _tensor_shape(job: Job, tp: int) -> Iterator[Problem]:
    model = job.model
    if model.heads % tp:
        yield Problem("tp does not divide the heads", f"the {model.heads} heads of {model.name}")
    if model.kv_heads != model.heads and model.kv_heads % tp and tp % model.kv_heads:
        yield Problem(
            "tp and the key-value heads do not divide", f"the {model.kv_heads} key-value heads of {model.name}"
        )
    widths = (model.ffn_hidden, model.shared_ffn_hidden, model.dense_width)
    for name, width in zip(("ffn_hidden", "shared_ffn_hidden", "dense_ffn_hidden"), widths, strict=True):
        if width % tp:
            yield Problem(f"tp does not divide {name}", f"{name}={width} of {model.name}")


def _tensor(job: Job, layout: Layout) -> Iterator[Problem]:
    """Check that tp divides each part of the model that it splits, and that NVLink connects every group."""
    across = layout.tp_across_domains or job.cluster.node.is_mig
    allowed = None
    for rule, part in _tensor_shape(job, layout.tp):
        allowed = allowed or _listed(tensor_parallel_choices(job, across_domains=across))
        yield Problem(rule, f"layout.tp={layout.tp} does not divide {part}: choose one of {allowed}")
    if not across and layout.tp > 1:
        yield from _tensor_domain(job, layout)


def _tensor_domain(job: Job, layout: Layout) -> Iterator[Problem]:
    size, tp, rule = job.cluster.domain_size, layout.tp, "tp crosses NVSwitch domains"
    if tp > size:
        links = "NVLink reaches no further" if size > 1 else "its GPUs have no NVLink between them"
        allowed = _listed(tensor_parallel_choices(job, across_domains=False))
        yield Problem(
            rule,
            f"layout.tp={tp} does not fit in one NVSwitch domain ({size} GPUs on {job.cluster.name}; {links}): "
            f"choose one of {allowed}, or set layout.tp_across_domains=true",
        )
    elif not _tensor_groups_inside(job, layout):
        yield Problem(
            rule,
            f"layout.axis_order={layout.axis_order} spreads groups of layout.tp={tp} over several NVSwitch domains "
            f"({size} GPUs each on {job.cluster.name}): put tp first, choose a tp that divides "
            f"{size}, or set layout.tp_across_domains=true",
        )


def _tensor_groups_inside(job: Job, layout: Layout) -> bool:
    """Return whether every tensor-parallel group is inside one domain; on a CPU node the domain is shared memory."""
    grid = RankGrid.of(layout)
    return Placement(job.cluster, grid).stays_in_domain("tp")


def _sequence(job: Job, layout: Layout) -> Iterator[Problem]:
    model, tp = job.model, layout.tp
    if layout.sequence_parallel and tp == 1:
        yield Problem(
            "sequence_parallel needs tp",
            "layout.sequence_parallel=true needs tp > 1 (it shards what tensor parallelism replicates): "
            "set it false or raise tp",
        )
    elif layout.sequence_parallel and model.seq_len % (tp * layout.cp):
        yield Problem(
            "sequence does not divide",
            f"sequence parallelism needs seq_len={model.seq_len} to divide by tp × cp = {tp * layout.cp}: "
            "change tp, cp or model.seq_len",
        )
    if layout.cp > 1 and model.seq_len % (2 * layout.cp):
        yield Problem(
            "sequence does not divide",
            f"layout.cp={layout.cp} needs seq_len={model.seq_len} to divide by 2 × cp = {2 * layout.cp} "
            "(two chunks a rank balance the causal mask)",
        )


def _pipeline(job: Job, layout: Layout) -> Iterator[Problem]:
    layers, stages, name = job.model.layers, layout.pp * layout.virtual_stages, job.model.name
    product = f"pp={layout.pp} × virtual_stages={layout.virtual_stages} = {stages}"
    if layout.virtual_stages > 1 and layout.pp == 1:
        yield Problem(
            "virtual stages need pp",
            f"layout.virtual_stages={layout.virtual_stages} needs pp > 1: set it to 1 or raise pp",
        )
    even = layout.virtual_stages > 1 and interleaves(layers, num_stages=stages)  # the ends may have no layer
    if stages > layers and not even:
        yield Problem(
            "more stages than layers",
            f"{product} stages need at least as many layers; {name} has {layers}: lower one of them",
        )
    elif layout.virtual_stages > 1 and not even:
        allowed = [number for number in range(1, layers + 1) if interleaves(layers, num_stages=number)]
        yield Problem(
            "layers do not divide for interleaving",
            f"the {layers} layers of {name} do not divide by {product}, not even with a layer less in the first and the "
            f"last stage, as interleaving needs: choose them so that their product is one of {_listed(allowed)}",
        )
    if layout.layer_split and _bad_split(layout, stages=stages, layers=layers):
        yield Problem(
            "layer_split does not match",
            f"layout.layer_split={list(layout.layer_split)} must give {stages} positive numbers that sum to {layers}",
        )


def _bad_split(layout: Layout, *, stages: int, layers: int) -> bool:
    split = layout.layer_split
    between = split[1:-1] if layout.virtual_stages > 1 else split
    return len(split) != stages or sum(split) != layers or min(split) < 0 or min(between, default=1) < 1


def _schedule(job: Job, layout: Layout) -> Iterator[Problem]:
    rule = "schedule and virtual stages disagree"
    if layout.schedule == "interleaved" and layout.virtual_stages == 1 and layout.pp > 1:
        yield Problem(rule, "layout.schedule=interleaved needs virtual_stages > 1: raise it, or choose 1f1b")
    if layout.schedule != "interleaved" and layout.virtual_stages > 1:
        yield Problem(
            rule,
            f"layout.schedule={layout.schedule} has one stage per rank: set virtual_stages=1, or choose interleaved",
        )


def _batch(job: Job, layout: Layout) -> Iterator[Problem]:
    batch, slice_size = job.training.global_batch, layout.dp * layout.micro_batch
    count = batch // slice_size
    if batch % slice_size:
        yield Problem(
            "batch does not divide",
            f"train.global_batch={batch} does not divide by dp × micro_batch = "
            f"{layout.dp} × {layout.micro_batch} = {slice_size}: change one of the three",
        )
    elif layout.virtual_stages > 1 and count % layout.pp:
        yield Problem(
            UNINTERLEAVED,
            f"interleaving runs micro-batches in groups of pp={layout.pp}, but a step has {count} of them: "
            "change dp, micro_batch or train.global_batch, or set virtual_stages=1",
        )


def _experts(job: Job, layout: Layout) -> Iterator[Problem]:
    model, rule = job.model, "experts do not divide"
    if layout.ep > 1 and not model.num_experts:
        yield Problem(
            "ep needs experts",
            f"layout.ep={layout.ep} needs a model with experts, and {model.name} has none: "
            "set layout.ep=1 or model.num_experts",
        )
    elif layout.ep > 1 and model.num_experts % layout.ep:
        allowed = _listed(divisors(model.num_experts))
        yield Problem(
            rule,
            f"layout.ep={layout.ep} does not divide the {model.num_experts} experts of {model.name}: "
            f"choose one of {allowed}",
        )
    if layout.ep > 1 and layout.dp % layout.ep:
        yield Problem(
            rule,
            f"layout.ep={layout.ep} must divide dp={layout.dp}: expert groups are parts of the data-parallel groups",
        )


def _shards(job: Job, layout: Layout) -> Iterator[Problem]:
    ranks = layout.dp * layout.cp
    if layout.shard_group and ranks % layout.shard_group:
        yield Problem(
            "shard groups do not divide dp",
            f"layout.shard_group={layout.shard_group} does not divide the dp × cp = {ranks} ranks that hold the same "
            f"parameters: choose one of {_listed(divisors(ranks))}, or all",
        )


def _engine(job: Job, layout: Layout) -> Iterator[Problem]:
    for message in engine_problems(job, layout):
        yield Problem(ENGINE_RULE, message)


RULES: tuple[Rule, ...] = (_world, _tensor, _sequence, _pipeline, _schedule, _batch, _experts, _shards, _engine)
