"""What the software of a run does where the user left it open, told from its year, engine, model and layout."""

from __future__ import annotations

from launcher.layout import Layout
from launcher.model import Model, Training


def runs_deepspeed(training: Training, layout: Layout) -> bool:
    """Whether DeepSpeed trains, under a fork of the Megatron-LM of 2021: as set, else a guess.

    Megatron-LM's own distributed optimizer came in 2022, in the year of sequence parallelism and selective
    recomputation. Software up to that year which shards the optimizer, and uses neither of them nor interleaved stages,
    which DeepSpeed lacks too, is taken for DeepSpeed.
    """
    if training.engine == "deepspeed":
        return True
    theirs_alone = layout.sequence_parallel or layout.recompute == "selective" or layout.virtual_stages > 1
    return training.software_year < 2023 and layout.sharding > 0 and not theirs_alone


def accumulates_in_place(model: Model, training: Training, layout: Layout) -> bool:
    """Whether gradients are summed over micro-batches without a pass over memory of their own.

    Where that is not set: with LayerNorm models since Megatron-LM's gradient_accumulation_fusion of late 2021. Plain
    PyTorch, in which Llama's family is commonly trained, and DeepSpeed add them one by one.
    """
    if training.fused_accumulation is not None:
        return training.fused_accumulation
    return model.norm == "layernorm" and training.software_year >= 2022 and not runs_deepspeed(training, layout)


def may_stop_early(training: Training) -> bool:
    """Whether recomputation leaves out a layer's last product in some layout."""
    if training.recompute_stops_early is not None:
        return training.recompute_stops_early
    return training.software_year >= 2024


def stops_early(training: Training, layout: Layout) -> bool:
    """Whether recomputing a layer leaves out its last product, whose result no gradient needs.

    Where that is not set: with fully sharded weights, since those stacks (FSDP) use PyTorch's own checkpointing, which
    stops early from version 2.1 of late 2023 on. Megatron-LM's repeats everything.
    """
    if training.recompute_stops_early is not None:
        return training.recompute_stops_early
    return layout.sharding == 3 and may_stop_early(training)


def async_tensor_parallel(training: Training, layout: Layout) -> bool:
    """Whether the backward pass's tensor-parallel collectives run beside the weight gradient's GEMM.

    Megatron-LM does since late 2021 (Korthikanti et al. 2022, section 4.2.2).
    """
    return training.software_year >= 2022 and not runs_deepspeed(training, layout)


def overlaps_grad_reduce(model: Model, training: Training, layout: Layout) -> bool:
    """Whether gradients are reduced behind the backward pass.

    Without a pipeline since DDP (Li et al. 2020); with one since Megatron-LM's --overlap-grad-reduce of September 2023.
    Megatron-LM's own DDP, its default (--DDP-impl local), waited until then (issue 428); its scripts of 2021 take
    torch's where there is no pipeline (examples/sc21).
    """
    if not training.overlap_grad_reduce or training.software_year >= 2024:
        return training.overlap_grad_reduce
    own = model.norm == "layernorm" and layout.zero_stage == 0 and training.software_year >= 2022
    return layout.pp == 1 and not own
