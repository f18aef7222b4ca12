"""How a model is trained, as far as speed, memory and the loss depend on it. Knows no hardware and no layout."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.model.shape import Model
from launcher.schema import AUTO, key
from launcher.units import DTYPE_BYTES

ATTENTION_KERNELS = ("math", "fused", "flash1", "flash")
OPTIMIZERS = ("adamw", "adam", "sgd")
ENGINES = ("torch", "deepspeed")
DTYPES = ("fp32", "bf16", "fp16")
MOST_SEQUENCES = 10**8


@dataclass(frozen=True)
class Training:
    """Batch, number formats, kernels and software of a training job: the keys of `train.*` that an estimate needs."""

    global_batch: int = key(16, unit="sequences", minimum=1, maximum=MOST_SEQUENCES, meaning="sequences of a step")
    dtype: str = key(
        AUTO, derived=True, choices=DTYPES, meaning="number format of the training; auto: bf16, and fp32 on CPUs"
    )
    optimizer: str = key("adamw", choices=OPTIMIZERS, meaning="what updates the parameters")
    attention: str = key(
        "flash", choices=ATTENTION_KERNELS,
        meaning="math (separate softmax), fused (Megatron's fused softmax), flash1 or flash (FlashAttention 1 and 2)",
    )  # fmt: skip
    fused_norm: bool = key(True, meaning="RMSNorm in one kernel; else in plain PyTorch operators")
    software_year: int = key(
        2024, unit="year", minimum=2018, maximum=2100, meaning="year of the software, for how good its kernels are"
    )
    engine: str = key("torch", choices=ENGINES, meaning="what trains")
    overlap_grad_reduce: bool = key(True, meaning="gradients are reduced behind the backward pass")
    grad_reduce_dtype: str | None = key(
        AUTO, auto=True, choices=DTYPES, meaning="number format of gradients as held and reduced; auto: train.dtype"
    )
    tp_reduce_dtype: str | None = key(
        AUTO, auto=True, choices=DTYPES,
        meaning="number format of tensor-parallel sums; auto: train.dtype (bf16 in fp32 with software before 2024)",
    )  # fmt: skip
    offload_optimizer: bool = key(False, meaning="optimizer states and update are on the host")
    fused_rotary: bool = key(False, meaning="rotary positions in one kernel; plain PyTorch takes several")
    dropout: float | None = key(
        AUTO, auto=True, minimum=0, below=1,
        meaning="probability in attention and residuals; auto: whatever the attention kernel's own stack runs",
    )  # fmt: skip
    loss_parallel: bool | None = key(
        AUTO, auto=True,
        meaning="loss over the vocabulary as tp divides it; auto: with LayerNorm models (Megatron-LM's family)",
    )  # fmt: skip
    fused_accumulation: bool | None = key(
        AUTO, auto=True,
        meaning="weight gradients added to their sums by the product itself; auto: with LayerNorm models, from 2022",
    )  # fmt: skip
    recompute_stops_early: bool | None = key(
        AUTO, auto=True,
        meaning="recomputation skips a layer's last product, as the launcher's own engine does; "
        "auto: with ZeRO 3 (FSDP) from 2024",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Replace `auto`; on CPUs, of which this knows nothing, configuration has set fp32."""
        if self.dtype == AUTO:
            object.__setattr__(self, "dtype", "bf16")

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
