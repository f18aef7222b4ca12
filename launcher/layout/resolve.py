"""Complete a layout request: every open key takes its default."""

from __future__ import annotations

from dataclasses import replace

from launcher.layout.degrees import DEFAULT_AXIS_ORDER, Layout, LayoutRequest
from launcher.layout.job import Job
from launcher.layout.split import default_split, has_split


def plain_layout(job: Job, request: LayoutRequest) -> Layout:
    """Return the layout that `request` pins; open degrees are 1, `dp` fills the cluster, no recomputation, no ZeRO.

    Sequence parallelism over one rank has no effect and counts as off: published sweeps use it so.
    The layout is not checked: `layout.legality.problems` says whether it is legal.
    """
    tp, pp, cp = request.tp or 1, request.pp or 1, request.cp or 1
    stages = request.virtual_stages or 1
    dp = request.dp or max(1, job.cluster.max_ranks // max(1, tp * pp * cp))
    shard_group = resolved_shard_group(job, request.shard_group, tp=tp, ranks=dp * cp)
    layout = Layout(
        tp=tp,
        pp=pp,
        dp=dp,
        cp=cp,
        ep=request.ep or 1,
        virtual_stages=stages,
        micro_batch=request.micro_batch or 1,
        zero_stage=request.zero_stage or 0,
        shard_group=shard_group,
        offload_optimizer=bool(request.offload_optimizer),
        recompute=request.recompute or "none",
        recompute_fraction=1.0 if request.recompute_fraction is None else request.recompute_fraction,
        sequence_parallel=bool(request.sequence_parallel) and tp > 1,
        axis_order=request.axis_order or DEFAULT_AXIS_ORDER,
        schedule=request.schedule or default_schedule(stages),
        layer_split=request.layer_split or (),
        tp_across_domains=request.tp_across_domains,
    )
    return with_layer_split(job, layout)


def resolved_shard_group(job: Job, asked: int | str | None, *, tp: int, ranks: int) -> int:
    """Return `shard_group` as a number of the `ranks` of dp × cp, 0 for all; on a node, tp ranks share the GPUs."""
    if asked == "node":
        asked = max(1, job.cluster.node.num_gpus // tp)
    return 0 if asked in (None, "all") or int(asked) >= ranks else int(asked)


def default_schedule(virtual_stages: int) -> str:
    """Return 1F1B, or its interleaved form for several stages per rank."""
    return "interleaved" if virtual_stages > 1 else "1f1b"


def with_layer_split(job: Job, layout: Layout) -> Layout:
    """Return `layout` with the layer split of its software, unless it already has one."""
    stages = layout.pp * layout.virtual_stages
    if layout.layer_split or not has_split(job, num_stages=stages, virtual=layout.virtual_stages > 1):
        return layout
    return replace(layout, layer_split=default_split(job, num_stages=stages))
