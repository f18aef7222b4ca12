"""Which layouts are legal on a cluster for a model: every broken rule is told, not just the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from launcher.layout.degrees import RECOMPUTE_MODES, SCHEDULES, Layout
from launcher.layout.grid import axis_order_problem
from launcher.layout.job import Job

Rule = Callable[[Job, Layout], Iterator[str]]


def problems(job: Job, layout: Layout) -> list[str]:
    """Every rule that `layout` breaks, as messages; empty when it is legal."""
    basic = [*_positive(job, layout), *_names(job, layout)]
    return basic or [message for rule in RULES for message in rule(job, layout)]


def _divisors(number: int) -> str:
    small = [str(d) for d in range(1, number + 1) if number % d == 0]
    return ", ".join(small) if len(small) <= 12 else ", ".join(small[:12]) + ", …"


def _positive(job: Job, layout: Layout) -> Iterator[str]:
    for key in ("tp", "pp", "dp", "cp", "ep", "virtual_stages", "micro_batch"):
        value = getattr(layout, key)
        if value < 1:
            yield f"layout.{key}={value} must be at least 1: give a positive number or auto"


def _names(job: Job, layout: Layout) -> Iterator[str]:
    if layout.recompute not in RECOMPUTE_MODES:
        yield f"layout.recompute={layout.recompute!r} is unknown: choose {', '.join(RECOMPUTE_MODES)}"
    if layout.schedule not in SCHEDULES:
        yield f"layout.schedule={layout.schedule!r} is unknown: choose {', '.join(SCHEDULES)}"
    if layout.zero_stage not in (0, 1, 2, 3):
        yield f"layout.zero_stage={layout.zero_stage} is unknown: choose 0, 1, 2 or 3"
    if message := axis_order_problem(layout.axis_order):
        yield message


def _world(job: Job, layout: Layout) -> Iterator[str]:
    ranks, world, name = job.cluster.max_ranks, layout.world_size, job.cluster.name
    product = f"tp={layout.tp} × pp={layout.pp} × dp={layout.dp} × cp={layout.cp} = {world} ranks"
    if job.cluster.node.is_mig and world > 1:
        yield (
            f"{product}, but MIG slices of {name} have no peer-to-peer: one job runs on one slice; "
            "set tp, pp, dp and cp to 1 (start one job per slice), or choose a cluster of whole GPUs"
        )
    elif world != ranks:
        yield (
            f"{product} does not fill the {ranks} GPUs of {name} "
            f"({job.cluster.num_nodes} nodes × {job.cluster.node.num_gpus}): change a degree, leave one auto, "
            "or set cluster.num_nodes / cluster.node.num_gpus"
        )


def _tensor(job: Job, layout: Layout) -> Iterator[str]:
    model, node, tp = job.model, job.cluster.node, layout.tp
    if model.heads % tp:
        yield f"layout.tp={tp} does not divide the {model.heads} heads of {model.name}: choose one of {_divisors(model.heads)}"
    if tp > 1 and model.kv_heads % tp and tp % model.kv_heads:
        yield f"layout.tp={tp} and the {model.kv_heads} key-value heads of {model.name} do not divide: choose one of {_divisors(model.kv_heads)}"
    if model.ffn_hidden % tp:
        yield f"layout.tp={tp} does not divide ffn_hidden={model.ffn_hidden} of {model.name}: choose one of {_divisors(model.ffn_hidden)}"
    if tp > node.domain_size and not layout.tp_across_domains and not node.is_mig:
        links = "NVLink reaches no further" if node.domain_size > 1 else "its GPUs have no NVLink between them"
        yield (
            f"layout.tp={tp} does not fit in one NVSwitch domain ({node.domain_size} GPUs on {job.cluster.name}; {links}): "
            f"choose one of {_divisors(node.domain_size)}, or set layout.tp_across_domains=true"
        )
    if layout.sequence_parallel and tp == 1:
        yield "layout.sequence_parallel=true needs tp > 1 (it shards what tensor parallelism replicates): set it false or raise tp"
    if layout.sequence_parallel and model.seq_len % (tp * layout.cp):
        yield f"sequence parallelism needs seq_len={model.seq_len} to divide by tp × cp = {tp * layout.cp}: change tp, cp or model.seq_len"


def _pipeline(job: Job, layout: Layout) -> Iterator[str]:
    layers, stages = job.model.layers, layout.pp * layout.virtual_stages
    if layout.virtual_stages > 1 and layout.pp == 1:
        yield f"layout.virtual_stages={layout.virtual_stages} needs pp > 1: set it to 1 or raise pp"
    if stages > layers:
        yield f"pp={layout.pp} × virtual_stages={layout.virtual_stages} = {stages} stages need at least as many layers; {job.model.name} has {layers}"
    elif layout.virtual_stages > 1 and layers % stages:
        yield f"the {layers} layers of {job.model.name} do not divide by pp × virtual_stages = {stages}, as interleaving needs: choose divisors of {layers}"
    if layout.schedule == "interleaved" and layout.virtual_stages == 1 and layout.pp > 1:
        yield "layout.schedule=interleaved needs virtual_stages > 1: raise it, or choose 1f1b"
    if layout.schedule in ("gpipe", "1f1b", "zb_h1") and layout.virtual_stages > 1:
        yield f"layout.schedule={layout.schedule} has one stage per rank: set virtual_stages=1, or choose interleaved"
    if layout.layer_split and (
        len(layout.layer_split) != stages or sum(layout.layer_split) != layers or min(layout.layer_split) < 1
    ):
        yield f"layout.layer_split={list(layout.layer_split)} must give {stages} positive numbers that sum to {layers}"


def _batch(job: Job, layout: Layout) -> Iterator[str]:
    batch, slice_size = job.training.global_batch, layout.dp * layout.micro_batch
    if slice_size < 1:
        return
    if batch % slice_size:
        yield f"train.global_batch={batch} does not divide by dp × micro_batch = {layout.dp} × {layout.micro_batch} = {slice_size}: change one of the three"
    elif layout.virtual_stages > 1 and (batch // slice_size) % layout.pp:
        yield (
            f"interleaving runs micro-batches in groups of pp={layout.pp}, but a step has {batch // slice_size} of them: "
            "change dp, micro_batch or train.global_batch, or set virtual_stages=1"
        )


def _context_and_experts(job: Job, layout: Layout) -> Iterator[str]:
    model = job.model
    if layout.cp > 1 and model.seq_len % (2 * layout.cp):
        yield f"layout.cp={layout.cp} needs seq_len={model.seq_len} to divide by 2 × cp = {2 * layout.cp} (two chunks a rank balance the causal mask)"
    if layout.ep > 1 and not model.num_experts:
        yield f"layout.ep={layout.ep} needs a model with experts, and {model.name} has none: set layout.ep=1 or model.num_experts"
    elif layout.ep > 1 and model.num_experts % layout.ep:
        yield f"layout.ep={layout.ep} does not divide the {model.num_experts} experts of {model.name}: choose one of {_divisors(model.num_experts)}"
    if layout.ep > 1 and layout.dp % layout.ep:
        yield f"layout.ep={layout.ep} must divide dp={layout.dp}: expert groups are cut out of the data-parallel ones"


def _zero(job: Job, layout: Layout) -> Iterator[str]:
    if job.training.engine == "deepspeed" and layout.zero_stage > 1 and layout.pp > 1:
        yield (
            f"DeepSpeed's pipeline does not run with ZeRO-{layout.zero_stage}: "
            "set layout.zero_stage=1, layout.pp=1, or train.engine=torch"
        )


RULES: tuple[Rule, ...] = (_world, _tensor, _pipeline, _batch, _context_and_experts, _zero)
