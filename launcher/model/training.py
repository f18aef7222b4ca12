"""How a model is trained, as far as speed, memory and the loss depend on it. Knows no hardware and no layout."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.model.shape import Model
from launcher.units import DTYPE_BYTES

ATTENTION_KERNELS = ("math", "fused", "flash1", "flash")
OPTIMIZERS = ("adamw", "adam", "sgd")
ENGINES = ("torch", "deepspeed")
DTYPES = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Training:
    """Batch, number formats, kernels and software of a training job.

    attention: `math` (separate softmax), `fused` (Megatron's fused softmax), `flash1`, `flash` (version 2).
    software_year: how good the kernels of that year's stack are; the one setting for a software generation.
    fused_norm, fused_rotary: RMSNorm and rotary positions in one kernel each, or in plain PyTorch operators.
    dropout: probability in attention and residuals; None: whatever the layer's implementation runs (see launcher.cost).
    tp_reduce_dtype: dtype of tensor-parallel sums; None: see `tensor_parallel_dtype`.
    grad_reduce_dtype: dtype of gradients as they are held and reduced; None: see `reduces_in`.
    fused_accumulation: the products of weight gradients add to the sums over micro-batches themselves; None: see
        launcher.stacks.habits.
    recompute_stops_early: repeating a layer ends with the last operator whose inputs the backward pass needs; None: see
        launcher.stacks.habits.
    loss_parallel: the loss is computed on the vocabulary as tensor parallelism divides it, in place;
        None: see `divides_logits`.
    """

    global_batch: int  # sequences
    dtype: str = "bf16"
    optimizer: str = "adamw"
    attention: str = "flash"
    fused_norm: bool = True
    software_year: int = 2024
    engine: str = "torch"
    overlap_grad_reduce: bool = True
    grad_reduce_dtype: str | None = None
    tp_reduce_dtype: str | None = None
    offload_optimizer: bool = False
    fused_rotary: bool = False
    dropout: float | None = None
    loss_parallel: bool | None = None
    fused_accumulation: bool | None = None
    recompute_stops_early: bool | None = None

    @property
    def dtype_bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]

    def reduces_in(self, model: Model, zero_stage: int) -> str:
        """Dtype in which gradients are held and reduced: as set, else the training dtype.

        Megatron-LM holds and reduces those of bf16 in fp32 (arguments.py: accumulate_allreduce_grads_in_fp32), and so
        do the LayerNorm models trained with it; fully sharded stacks (FSDP) do not.
        """
        if self.grad_reduce_dtype:
            return self.grad_reduce_dtype
        in_fp32 = self.dtype == "bf16" and model.norm == "layernorm" and zero_stage < 3
        return "fp32" if in_fp32 else self.dtype

    @property
    def attention_kernel(self) -> str:
        """`attention`, but FlashAttention is version 1 in software before its version 2 of July 2023."""
        return "flash1" if self.attention == "flash" and self.software_year < 2023 else self.attention

    def divides_logits(self, model: Model) -> bool:
        """Whether the loss works on the vocabulary as tensor parallelism divides it, in place (`loss_parallel`).

        Where that is not set: with LayerNorm models, whose stacks descend from Megatron-LM. Llama's family is commonly
        trained with `F.cross_entropy` on gathered fp32 logits, and memory is not promised on anything better.
        """
        return model.norm == "layernorm" if self.loss_parallel is None else self.loss_parallel

    def tensor_parallel_dtype(self, *, sequence_parallel: bool) -> str:
        """Dtype in which tensor-parallel partial sums are reduced: as set, else the training dtype.

        Before 2024 stacks summed bf16 in fp32 (GPT-NeoX `fp32_allreduce`, needed with ZeRO-1); Megatron-LM's sequence
        parallelism never did.
        """
        if self.tp_reduce_dtype:
            return self.tp_reduce_dtype
        in_fp32 = self.dtype == "bf16" and self.software_year < 2024 and not sequence_parallel
        return "fp32" if in_fp32 else self.dtype
