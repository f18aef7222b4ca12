"""Shard a stage for this rank: tensor and context parallelism by plain tensors, then FSDP2 by ZeRO stage."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from launcher.layout import Layout
from launcher.model import Model
from launcher.worker.model.tensor_layers import TensorAxis, shard_boundaries, shard_model
from launcher.worker.model.transformer import Transformer
from launcher.worker.parallel.context_parallel import apply_context_parallel
from launcher.worker.parallel.process_groups import ProcessGroup

SPLIT_BACKWARD = frozenset({"zb_h1"})  # schedules that compute input and weight gradients apart


def shard_stage(stage: Transformer, peers: Mapping[str, ProcessGroup], layout: Layout, *, model: Model) -> None:
    """Shard `stage` (on the meta device) over the axes `tp` and `cp`; `peers` are their process groups."""
    if layout.tp > 1:
        re_all_gather = layout.sequence_parallel and can_re_all_gather(layout, peers["tp"].group)
        axis = TensorAxis(peers["tp"], sequence=layout.sequence_parallel, re_all_gather=re_all_gather)
        shard_model(stage, axis, model=model)
        shard_boundaries(stage, axis, shard_messages=shards_messages(layout, seq_len=model.seq_len))
    if layout.cp > 1:
        re_all_gather = can_re_all_gather(layout, peers["cp"].group) and layout.recompute == "none"
        apply_context_parallel(stage, peers["cp"], seq_len=model.seq_len, re_all_gather=re_all_gather)


def can_re_all_gather(layout: Layout, group: dist.ProcessGroup) -> bool:
    """Return whether a layer's gathered input may be gathered again when autograd unpacks saved tensors.

    Off over gloo, as the cost model counts it for CPU ranks: two of them once died of a corrupted heap when DTensor's
    collectives ran there (torch 2.13; cause not found). With plain ones 960 steps of eight layouts under glibc's heap
    checks did not. Never run over NCCL.
    """
    allowed = layout.recompute != "full" and layout.schedule not in SPLIT_BACKWARD
    return allowed and dist.get_backend(group) != "gloo"


def shards_messages(layout: Layout, *, seq_len: int) -> bool:
    """Return whether tensor-parallel ranks each send a shard of the messages between stages."""
    divided = layout.tp > 1 and layout.pp > 1 and seq_len // layout.cp % layout.tp == 0
    return layout.sequence_parallel or (divided and layout.schedule not in SPLIT_BACKWARD)


def shard_data_parallel(
    stage: Transformer,
    mesh: DeviceMesh,
    *,
    zero_stage: int,
    keep_unsharded: bool,
    compute_dtype: torch.dtype,
    reduce_dtype: torch.dtype,
) -> None:
    """FSDP2 over `mesh` (one dimension: shard; two: replicate, shard), block by block.

    ZeRO-1 and -2 keep the gathered parameters from forward to backward, ZeRO-3 gathers them again. `keep_unsharded`
    forces the former: under schedules that split the backward, FSDP2 (2.13) drops gradients of resharded modules.
    """
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=reduce_dtype)
    reshard = zero_stage == 3 and not keep_unsharded
    for block in stage.layers.values():
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    fully_shard(stage, mesh=mesh, mp_policy=policy, reshard_after_forward=False)


def accumulate_without_sync(stage: nn.Module, *, zero_stage: int, last: bool) -> None:
    """Set FSDP2 up for one micro-batch: ZeRO-1 reduces gradients once, in the last; ZeRO-2 and -3 in every one.

    ZeRO-1 and -2 keep the parameters gathered until the last micro-batch is through.
    """
    if isinstance(stage, FSDPModule):
        stage.set_requires_gradient_sync(last or zero_stage > 1)
        stage.set_reshard_after_backward(last or zero_stage == 3)
        stage.set_is_last_backward(last)
