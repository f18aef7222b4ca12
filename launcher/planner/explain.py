"""Reasons that a user can check: why the first choice is best, where others are worse, which links are crossed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import inf
from typing import Any

from launcher.cost import Estimate
from launcher.cost.estimate import AXIS_NAMES, exposed, label, where_memory_goes, where_time_goes
from launcher.cost.model import CostModel
from launcher.cost.network import group_of
from launcher.layout import Layout, Link, Placement, RankGrid
from launcher.layout.job import Job
from launcher.layout.legality import problems
from launcher.layout.split import split_by_cost
from launcher.planner.preference import NOISE, clear_leads
from launcher.planner.result import Candidate, SearchResult
from launcher.planner.slices import smallest_slice
from launcher.planner.sources import measured_numbers
from launcher.units import format_bytes, format_seconds

LINK_NAMES = {
    Link.SAME_GPU: "one GPU",
    Link.NVLINK: "NVLink inside one domain",
    Link.PCIE: "PCIe inside one node, no NVLink between its members",
    Link.LEAF: "the network, under one leaf switch",
    Link.SPINE: "the network, across leaf switches through the spine",
    Link.CORE: "the network, from pod to pod through the core",
}
COMPARED_KEYS = (
    *("tp", "pp", "dp", "cp", "ep", "virtual_stages", "micro_batch", "zero_stage"),
    *("shard_group", "offload_optimizer", "recompute", "recompute_fraction", "sequence_parallel", "axis_order"),
    "schedule",
)
MUCH_SKIPPED = 0.2  # of the FLOPs that MFU counts: from there on the plan says how many a causal kernel skips
LEAST_LEAD = 5e-4  # the smallest difference that is printed as one
SHOWN = 3  # number of differences and alternatives to show


def reasons(result: SearchResult, model: CostModel) -> list[tuple[str, ...]]:
    """Explain each candidate: for the first, its time and the alternatives; for the others, where they are worse."""
    if not result.candidates:
        return []
    first, *others = result.candidates
    why = [tuple(_first_choice(result, model))]
    return why + [(slower(first.estimate, other.estimate),) for other in others]


def _first_choice(result: SearchResult, model: CostModel) -> Iterator[str]:
    job, best = result.job, result.best
    yield where_time_goes(best.estimate)
    yield from skipped_attention(job, best.estimate)
    yield where_memory_goes(best.estimate)
    yield from offloading(result, model)
    yield from measured_numbers(model, best.layout)
    yield from links(job, best.layout)
    if len(result.candidates) > 1:
        second = result.candidates[1]
        changed = _difference_of_layouts(best.layout, second.layout)
        yield f"next best {changed}: {slower(best.estimate, second.estimate)}"
        yield from close_calls(result)
    yield from alternatives(job, best, model, shown=[candidate.layout for candidate in result.candidates[:2]])
    yield from better_split(job, best, model)
    yield from smallest_slice(job, best)
    yield from faster_elsewhere(result)


def close_calls(result: SearchResult) -> Iterator[str]:
    """Say that the choice is closer than estimates can show, and why it is not a layout that is estimated as faster."""
    best, others = result.best, result.candidates[1:]
    fastest = min(others, key=lambda candidate: candidate.estimate.step_time_s)
    lead = best.estimate.step_time_s / fastest.estimate.step_time_s - 1
    ours, theirs = (clear_leads(result.job, each.layout) for each in (best, fastest))
    rules = [f"{what} must be faster by {share:.0%}" for what, share in theirs.items() if what not in ours]
    if lead > LEAST_LEAD and rules:
        yield (
            f"{fastest.layout.brief()} is estimated {lead:.1%} faster: {' and '.join(rules)}, as no run was held "
            "against its estimate"
        )
    elif lead > LEAST_LEAD:
        yield (
            f"{fastest.layout.brief()} is estimated {lead:.1%} faster, which is less than estimates can tell apart "
            f"({NOISE:.0%}); the first choice has more room, fewer moving parts or what was measured before"
        )
    elif -lead < NOISE and best.layout.world_size > 1:
        yield f"a lead of less than {NOISE:.0%} is within what estimates can tell apart: measure both where it matters"


def faster_elsewhere(result: SearchResult) -> Iterator[str]:
    """Yield the fastest layout that the software cannot run, if it would be faster than the first choice."""
    refused, best = result.refused, result.best
    if refused and refused.candidate.estimate.step_time_s < best.estimate.step_time_s:
        faster = slower(best.estimate, refused.candidate.estimate)
        yield f"{refused.candidate.layout.brief()} would be {faster}, but {refused.why}"


def skipped_attention(job: Job, estimate: Estimate) -> Iterator[str]:
    """Say how much of the MFU is attention that a causal kernel skips, where that is much."""
    model, batch = job.model, job.training.global_batch
    skipped = 3 * 2.0 * model.layers * batch * model.seq_len**2 * model.attention_hidden
    share = skipped / model.step_flops(sequences=batch)
    if estimate.mfu is not None and share >= MUCH_SKIPPED and job.training.attention.startswith("flash"):
        yield (
            f"MFU counts attention in full (Narayanan et al. 2021, eq. 3), and a causal kernel skips half of it: "
            f"{estimate.mfu * (1 - share):.1%} without that half"
        )


def offloading(result: SearchResult, model: CostModel) -> Iterator[str]:
    """Say that the optimizer is on the host, how much of the host that takes, and why."""
    best = result.best
    if not best.layout.offload_optimizer:
        return
    memory = model.memory(best.layout)
    usable = f" of {format_bytes(memory.usable_host_bytes)} usable" if memory.usable_host_bytes < inf else ""
    taken = f"the optimizer is offloaded to the host, {format_bytes(memory.host_bytes)}{usable} on each node"
    if result.request.offload_optimizer:
        yield f"{taken}, as layout.offload_optimizer=true asks"
    elif result.without_offload is None:
        yield f"{taken}: without it no layout fits"
    else:
        other = result.without_offload
        chance = other.estimate.fit_probability
        risk = f", and fits with a probability of {chance:.0%}" if chance < 1 - result.request.risk else ""
        yield f"{taken}: the best without it, {other.layout.brief()}, is {slower(best.estimate, other.estimate)}{risk}"


def links(job: Job, layout: Layout) -> Iterator[str]:
    """Say which links the groups of each axis cross."""
    if job.cluster.node.is_mig:
        yield islands(job)
    placement = Placement(job.cluster, RankGrid.of(layout))
    for axis in (*layout.axis_order.split("-"), "ep"):
        degree = layout.degree(axis)
        if degree < 2:
            continue
        group = group_of(job.cluster, layout, axis)
        spread = f", {group.per_node} on each of {group.nodes} nodes" if group.nodes > 1 else ""
        link = placement.axis_link(axis)
        on_cpu = job.cluster.node.gpu.kind == "cpu" and link is Link.PCIE
        crossed = "the memory of one node" if on_cpu else LINK_NAMES[link]
        yield f"{AXIS_NAMES[axis]}-parallel groups of {degree}{spread} cross {crossed}"


def islands(job: Job) -> str:
    """Explain the use of a cluster of MIG slices: they have no peer-to-peer."""
    count = job.cluster.num_gpus
    return (
        f"each MIG slice is a separate GPU (slices have no peer-to-peer): this job runs on one slice, "
        f"and {job.cluster.name} runs {count} such jobs side by side"
    )


def slower(reference: Estimate, other: Estimate) -> str:
    """Say by how much `other` is slower than `reference`, and in which parts of the step."""
    gap = other.step_time_s - reference.step_time_s
    by = gap / reference.step_time_s
    detail = differences(reference, other)
    if abs(by) < 5e-4:
        memory = other.memory_bytes_per_gpu - reference.memory_bytes_per_gpu
        if abs(memory) < 1e6:
            return "as fast, with as much memory"
        return f"as fast, with {format_bytes(abs(memory))} {'more' if memory > 0 else 'less'} memory"
    return f"{abs(by):.1%} {'slower' if by > 0 else 'faster'} ({detail})"


def differences(reference: Estimate, other: Estimate) -> str:
    """List the parts of a step that differ most: `bubble +1.2 s, tensor-parallel communication -0.3 s`."""
    before, after = exposed(reference), exposed(other)
    deltas = {name: after.get(name, 0.0) - before.get(name, 0.0) for name in {**before, **after}}
    largest = sorted(deltas.items(), key=lambda item: -abs(item[1]))[:SHOWN]
    floor = 1e-4 * reference.step_time_s
    shown = [f"{label(name)} {'+' if d > 0 else '-'}{format_seconds(abs(d))}" for name, d in largest if abs(d) > floor]
    return ", ".join(shown) or "no part differs"


def alternatives(job: Job, best: Candidate, model: CostModel, *, shown: Sequence[Layout]) -> Iterator[str]:
    """Say what one change to the chosen layout would cost, for the usual questions; skip layouts in `shown`."""
    for key, change in _changes(best.layout):
        layout = replace(best.layout, **change)
        if layout in shown or problems(job, layout):
            continue
        other = model.estimate(layout)
        if not other.fits:
            yield f"{key} {lacking(other)}"
        elif other.step_time_s > best.estimate.step_time_s * 1.0005:
            yield f"{key} would be {slower(best.estimate, other)}"


def misfits(job: Job, fitting: Sequence[Candidate], model: CostModel) -> Iterator[Candidate]:
    """Yield the layouts that are one change away from one that fits, and do not fit themselves; each once."""
    seen = {candidate.layout for candidate in fitting}
    for candidate in fitting:
        for _, change in _changes(candidate.layout):
            layout = replace(candidate.layout, **change)
            if layout in seen or problems(job, layout):
                continue
            seen.add(layout)
            if not (estimate := model.estimate(layout)).fits:
                yield Candidate(layout, estimate)


def lacking(estimate: Estimate) -> str:
    """Say where a layout that does not fit lacks memory, and how much."""
    missing = estimate.memory_bytes_per_gpu - estimate.usable_memory_bytes
    return f"would not fit: stage {estimate.worst_stage} lacks {format_bytes(missing)}"


def better_split(job: Job, best: Candidate, model: CostModel) -> Iterator[str]:
    """Yield a faster layer split, if there is one: the head and the embedding take time too."""
    layout = best.layout
    if layout.pp == 1 or layout.virtual_stages > 1:
        return
    layer_s = model.layer_cost(layout).total_s
    embedding, head = (end.total_s / layer_s for end in model.end_costs(layout))
    split = split_by_cost(job.model.layers, num_stages=layout.pp, first_extra=embedding, last_extra=head)
    other = model.estimate(replace(layout, layer_split=split))
    if other.fits and other.step_time_s < best.estimate.step_time_s * 0.999:
        yield f"layout.layer_split=[{','.join(map(str, split))}] would be {slower(best.estimate, other)}"


def _changes(layout: Layout) -> Iterator[tuple[str, dict[str, Any]]]:
    less = {"full": "selective", "selective": "none"}.get(layout.recompute)
    if less:
        yield f"recompute={less}", {"recompute": less}
    if layout.zero_stage and not layout.offload_optimizer:
        yield "zero_stage=0", {"zero_stage": 0}
    yield f"micro_batch={layout.micro_batch * 2}", {"micro_batch": layout.micro_batch * 2}
    if layout.sequence_parallel:
        yield "sequence_parallel=false", {"sequence_parallel": False}


def _difference_of_layouts(reference: Layout, other: Layout) -> str:
    """List the keys in which `other` differs from the first choice."""
    changed = [
        f"{key}={_plain(getattr(other, key))}"
        for key in COMPARED_KEYS
        if getattr(other, key) != getattr(reference, key)
    ]
    return f"with {', '.join(changed)}" if changed else "with another split of the layers"


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
