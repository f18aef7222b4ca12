"""Cut a model for this rank with plain torch: DTensor tensor parallelism, then FSDP2 by ZeRO stage."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from launcher.layout import Layout
from launcher.worker.init import InitialWeights
from launcher.worker.sequence import GatherSequence
from launcher.worker.transformer import Transformer
from launcher.worker.vocabulary import VocabularyParallel

SPLIT_BACKWARD = frozenset({"zb_h1", "zbv"})  # schedules that compute input and weight gradients apart


def tensor_plan(
    stage: Transformer, *, sequence_parallel: bool, regather: bool, cut_messages: bool
) -> dict[str, ParallelStyle]:
    """Module name → how it is cut: Megatron's columns and rows (Shoeybi et al. 2019), and with `sequence_parallel`
    the sequence cut between them (Korthikanti et al. 2022), gathered again for the backward pass with `regather`.

    With `cut_messages` every rank sends its part of the sequence to the next stage, where the parts are gathered
    (Narayanan et al. 2021, section 4.1).
    """
    between = Shard(1) if sequence_parallel else Replicate()
    whole_input: ParallelStyle = PrepareModuleInput(input_layouts=(between,), desired_input_layouts=(Replicate(),))
    if sequence_parallel and regather:
        whole_input = GatherSequence()
    plan: dict[str, ParallelStyle] = {
        "tokens": VocabularyParallel(),
        "head": ColwiseParallel(input_layouts=between),
    }
    if sequence_parallel:
        plan["embedded"] = PrepareModuleInput(
            input_layouts=(Replicate(),), desired_input_layouts=(Shard(1),), use_local_output=True
        )
        plan["norm"] = SequenceParallel()
    elif cut_messages:
        cut, whole = (Shard(1),), (Replicate(),)
        if stage.tokens is None:
            plan["entry"] = PrepareModuleInput(input_layouts=cut, desired_input_layouts=whole, use_local_output=True)
        if stage.head is None:
            plan["exit"] = PrepareModuleInput(input_layouts=whole, desired_input_layouts=cut, use_local_output=True)
    for name in stage.layers:
        layer = f"layers.{name}"
        # One conversion for q, k and v (gate and up): their input gradients are summed before the one all-reduce.
        plan |= {f"{layer}.attention": whole_input, f"{layer}.mlp": whole_input}
        plan |= {f"{layer}.attention.{p}": ColwiseParallel() for p in ("q", "k", "v")}
        plan |= {f"{layer}.mlp.{p}": ColwiseParallel() for p in ("gate", "up")}
        plan[f"{layer}.attention.o"] = RowwiseParallel(output_layouts=between)
        plan[f"{layer}.mlp.down"] = RowwiseParallel(output_layouts=between)
        if sequence_parallel:
            plan |= {f"{layer}.norm1": SequenceParallel(), f"{layer}.norm2": SequenceParallel()}
    present = {name for name, module in stage.named_modules() if module is not None}
    return {name: style for name, style in plan.items() if name in present}


def apply_tensor_parallel(stage: Transformer, mesh: DeviceMesh, layout: Layout, *, seq_len: int) -> None:
    """Cut `stage` (on the meta device) over `mesh`."""
    plan = tensor_plan(
        stage,
        sequence_parallel=layout.sequence_parallel,
        regather=can_regather(mesh) and layout.recompute != "full" and layout.schedule not in SPLIT_BACKWARD,
        cut_messages=cuts_messages(layout, seq_len=seq_len),
    )
    parallelize_module(stage, mesh, plan, src_data_rank=None)


def can_regather(mesh: DeviceMesh) -> bool:
    """Whether a gather may run where autograd unpacks what it saved.

    Off over gloo as a precaution: after it was introduced two CPU ranks died of a corrupted heap (torch 2.13), and
    neither cause nor recurrence was found; the whole input is kept for the backward pass there. Never run over NCCL.
    """
    return dist.get_backend(mesh.get_group()) != "gloo"


def cuts_messages(layout: Layout, *, seq_len: int) -> bool:
    """Whether tensor-parallel peers each send a part of what goes from stage to stage.

    A split backward pass fails on the gathers that this puts at a stage's ends (torch 2.13).
    """
    divided = layout.tp > 1 and layout.pp > 1 and seq_len // layout.cp % layout.tp == 0
    return layout.sequence_parallel or (divided and layout.schedule not in SPLIT_BACKWARD)


def shard_data_parallel(
    stage: Transformer, mesh: DeviceMesh, *, zero_stage: int, keep_unsharded: bool, compute_dtype: torch.dtype
) -> None:
    """FSDP2 over `mesh` (one dimension: shard; two: replicate, shard), block by block.

    ZeRO-1 and -2 keep the gathered parameters from forward to backward, ZeRO-3 gathers them again. `keep_unsharded`
    forces the former: under schedules that split the backward, FSDP2 (2.13) drops gradients of resharded modules.
    """
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
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


def materialise(stage: Transformer, *, weights: InitialWeights, device: torch.device, dtype: torch.dtype) -> None:
    """Give every parameter its storage on `device` and its initial value, of which a rank keeps its own part."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    stage.to(dtype=dtype)
    stage.to_empty(device=device)
    with torch.no_grad():
        for name, param in stage.named_parameters():
            whole = weights(name, param.shape).to(device, dtype)
            if isinstance(param, DTensor):
                part = distribute_tensor(whole, param.device_mesh, param.placements, src_data_rank=None)
                param.to_local().copy_(part.to_local())
            else:
                param.copy_(whole)
