"""Messages if no layout is legal or none fits: the broken rules, the nearest miss, what would help."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from launcher.cost.model import CostModel
from launcher.layout import Layout, LayoutRequest
from launcher.layout.engines import OWN
from launcher.layout.job import Job
from launcher.layout.legality import Problem, divisors
from launcher.layout.resolve import plain_layout
from launcher.planner.lower_bounds import least_memory
from launcher.planner.space import Space
from launcher.stacks import stack_of
from launcher.units import format_bytes

FREED = (
    *("recompute", "zero_stage", "offload_optimizer", "micro_batch", "sequence_parallel", "virtual_stages"),
    *("tp", "pp", "cp", "dp"),
)
MOST_TIMES_NODES = 64  # do not advise more than this many times the nodes


def refusal(space: Space, illegal: Sequence[Sequence[Problem]]) -> list[str]:
    """Return the rules that the nearest layout breaks; `illegal` has those of all layouts considered."""
    attempts = [broken for broken in illegal if all(problem.message for problem in broken)]
    attempts += [space.broken(layout) for layout in _completions(space.job, space.request)]
    unknown = Problem("", f"no layout of {space.job.model.name} on {space.job.cluster.name} satisfies the pinned keys")
    fewest = min((broken for broken in attempts if broken), key=len, default=[unknown])
    return [problem.message for problem in fewest]


def _completions(job: Job, request: LayoutRequest) -> Iterator[Layout]:
    """Complete a request that leaves the search no layout: one for each open pp and micro batch."""
    pps = (
        [request.pp]
        if request.pp is not None
        else [pp for pp in divisors(job.cluster.max_ranks) if pp <= job.model.layers]
    )
    batches = [request.micro_batch] if request.micro_batch is not None else divisors(job.training.global_batch)
    for pp, micro_batch in product(pps, batches):
        yield plain_layout(job, replace(request, pp=pp, micro_batch=micro_batch))


def no_fit_message(space: Space, model: CostModel, layout: Layout) -> str:
    """Describe the nearest miss, the stage that lacks memory, how much, and the cheapest changes that make it fit."""
    memory = model.memory(layout)
    missing = format_bytes(max(memory.total_bytes - memory.usable_bytes, memory.host_bytes - memory.usable_host_bytes))
    largest = max(memory.parts, key=lambda part: memory.parts[part])
    cluster, name = space.job.cluster, space.job.model.name
    lacking = f"{missing} too much (largest part: {largest})"
    pinned = ", ".join(f"{key}={_plain(value)}" for key, value in space.request.pinned().items())
    given = f" with {pinned}" if pinned else ""
    needs = f"{format_bytes(memory.total_bytes)} of {format_bytes(memory.usable_bytes)} usable on stage {memory.stage}"
    kind = "MIG slices, one job each" if cluster.node.is_mig else "GPU" if cluster.num_gpus == 1 else "GPUs"
    changes = list(_changes(space))
    if cluster.max_ranks == 1 or not changes:
        changes.append(f"GPUs that leave at least {format_bytes(memory.total_bytes)} each")
    if memory.host_bytes > memory.usable_host_bytes:
        needs += f", and {format_bytes(memory.host_bytes)} of {format_bytes(memory.usable_host_bytes)} of each host"
    lines = [
        f"no layout of {name} on {cluster.name} ({cluster.num_gpus} {kind}){given} fits in memory",
        f"Nearest miss: {layout.brief()} needs {needs}, {lacking}",
    ]
    return "\n  ".join([*lines, *([f"What would help: {'; '.join(changes)}"] if changes else [])])


def _changes(space: Space) -> Iterator[str]:
    """Yield changes that make some layout fit, cheapest first: unpin a key (or several, if one is not enough), then
    another setting, then more hardware.
    """
    job, request = space.job, space.request
    yield from list(_freed(job, request)) or _several_freed(job, request)
    for change, other, asked in _other_settings(job, request):
        if _fitting(other, asked) is not None:
            yield change
    if (nodes := _nodes_needed(job, request)) is not None:
        yield f"cluster.num_nodes={nodes} instead of {job.cluster.num_nodes}"


def _freed(job: Job, request: LayoutRequest) -> Iterator[str]:
    """Yield each key that helps if it alone is unpinned."""
    for key in FREED:
        if getattr(request, key) is not None:
            freed: dict[str, Any] = {key: None} | ({"dp": None} if key in ("tp", "pp", "cp") else {})
            if (found := _fitting(job, replace(request, **freed))) is not None:
                yield f"layout.{key}={_plain(getattr(found, key))} instead of {_plain(getattr(request, key))}"


def _several_freed(job: Job, request: LayoutRequest) -> Iterator[str]:
    """Yield all keys unpinned together."""
    pinned = [key for key in FREED if getattr(request, key) is not None]
    freed: dict[str, Any] = dict.fromkeys(pinned)
    found = _fitting(job, replace(request, **freed)) if len(pinned) > 1 else None
    if found is not None:
        changed = [key for key in pinned if getattr(found, key) != getattr(request, key)]
        yield " together with ".join(f"layout.{key}={_plain(getattr(found, key))}" for key in changed)


def _other_settings(job: Job, request: LayoutRequest) -> Iterator[tuple[str, Job, LayoutRequest]]:
    """Yield settings that need less memory, in words, with the job and the request that they make."""
    if job.training.attention in ("math", "fused"):  # they keep all attention scores
        yield "train.attention=flash", replace(job, training=replace(job.training, attention="flash")), request
    if request.offload_optimizer is None:
        yield from _offloading(job, replace(request, offload_optimizer=True))


def _offloading(job: Job, request: LayoutRequest) -> Iterator[tuple[str, Job, LayoutRequest]]:
    """Yield how the optimizer gets to the host where the search does not try that: where the host's memory is not
    known, and by the other engine of ours.
    """
    node = job.cluster.node
    if node.gpu.kind != "cuda" or node.is_mig:
        return
    if job.stack.offload_stages and not node.host_memory_bytes:
        yield "layout.offload_optimizer=true, if the host has room (cluster.node.host_memory_gib)", job, request
    elif job.stack.name == OWN and job.training.engine == "torch":
        stack = stack_of(OWN, year=job.stack.year, engine="deepspeed")
        other = replace(job, training=replace(job.training, engine="deepspeed"), stack=stack)
        yield "train.engine=deepspeed layout.offload_optimizer=true", other, request


def _fitting(job: Job, request: LayoutRequest) -> Layout | None:
    """Return a layout that fits, or None."""
    model = CostModel(job)
    found = least_memory(Space(job, request), model, most_bytes=model.usable_bytes)
    return found if found is not None and model.memory(found).fits else None


def _nodes_needed(job: Job, request: LayoutRequest) -> int | None:
    """Return the smallest number of nodes, by doubling, on which a layout fits; None if the request fixes it."""
    if job.cluster.node.is_mig or job.cluster.node.gpu.kind == "cpu":
        return None
    if job.cluster.num_nodes == 1 and not job.cluster.node.num_nics:
        return None
    nodes = job.cluster.num_nodes
    while nodes < MOST_TIMES_NODES * job.cluster.num_nodes:
        nodes *= 2
        if _fitting(replace(job, cluster=replace(job.cluster, num_nodes=nodes)), request) is not None:
            return nodes
    return None


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
