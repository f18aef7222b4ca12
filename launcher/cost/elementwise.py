"""Memory-bound operators of a transformer layer: bytes through HBM and kernels, forward and backward.

Counted operator by operator from what eager PyTorch and Megatron's fused kernels read and write; `e` is the bytes of an
element in the training dtype. Every figure is per element of the tensor that the operator works on.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Traffic:
    """Bytes per element and kernels, forward and backward."""

    forward_bytes: float
    forward_kernels: int
    backward_bytes: float
    backward_kernels: int


def norm(e: int, *, fused: bool) -> Traffic:
    """LayerNorm (one kernel in PyTorch) or a fused RMSNorm; else RMSNorm in separate fp32 operators.

    Fused: read, write; back: read input and gradient, write, then the weight gradient's own pass. Unfused, forward:
    cast to fp32, square, mean, product with the inverse root, cast back, weight. Backward: the weight and its
    gradient (a product, then its sum), the casts, both factors of the product, mean, square (whose derivative copies
    its base first), and the sum of the input's gradients.
    """
    if fused:
        return Traffic(2 * e, 1, 5 * e, 2)
    return Traffic(28 + 4 * e, 8, 76 + 8 * e, 16)


def residual(e: int, *, dropout: bool) -> Traffic:
    """Bias, dropout and residual addition in one kernel (Megatron), or the plain addition; back: the gradients' sum."""
    return Traffic(3 * e + 1, 1, 6 * e + 1, 3) if dropout else Traffic(3 * e, 1, 3 * e, 1)


def activation(e: int, *, gated: bool, fused: bool) -> Traffic:
    """Bias and GELU, or SiLU then product, which `fused` makes one kernel each way: per element of one MLP projection's
    output on this rank.
    """
    if not gated:
        return Traffic(2 * e, 1, 4 * e, 2)
    return Traffic(3 * e, 1, 5 * e, 1) if fused else Traffic(5 * e, 2, 9 * e, 3)


def rotary(e: int, *, fused: bool) -> Traffic:
    """Rotary positions on one tensor (queries or keys): half-rotation, two products, sum; or one kernel."""
    return Traffic(2 * e, 1, 2 * e, 1) if fused else Traffic(10 * e, 5, 10 * e, 5)


def joined_chunks(e: int) -> Traffic:
    """Context parallelism: gathered keys and values put into the order of the sequence; back: again, and gradients cut.

    Two copies each time, per element of the whole sequence.
    """
    return Traffic(4 * e, 3, 8 * e, 6)


def routing(e: int) -> Traffic:
    """Tokens sorted by their expert and put back, weighted and summed: per element of the routed copies.

    A gather and a scatter each way, and the router's softmax, choice and counts.
    """
    return Traffic(5 * e, 9, 7 * e, 8)


def softmax(e: int, *, kernel: str, dropout: bool, math_bytes: float) -> Traffic:
    """Softmax over attention scores: `fused` (one kernel that reads the causal half and writes all), or `math` in fp32
    steps; with attention dropout.
    """
    drop = (2 * e + 1, 1) if dropout else (0, 0)
    if kernel == "math":
        return Traffic(math_bytes + drop[0], 6 + drop[1], 0.8 * math_bytes + drop[0], 6 + drop[1])
    return Traffic(1.5 * e + drop[0], 1 + drop[1], 2 * e + drop[0], 1 + drop[1])


def fused_loss(e: int) -> Traffic:
    """Cross-entropy in one kernel, per logit: read for the maximum and for the sum; back: read, and its gradient
    written (apex's and flash-attention's xentropy kernels).
    """
    return Traffic(2 * e, 1, 2 * e, 1)


def joined_logits(e: int, tp: int) -> Traffic:
    """Gathered logits copied next to each other, per logit of the whole vocabulary; back: this rank's share is cut."""
    return Traffic(2 * e, 1, 2 * e / tp, 1)


def accumulation(e: int, gradient_bytes: int) -> Traffic:
    """Per parameter: a micro-batch's gradient is read and added to the running sum."""
    return Traffic(0.0, 0, e + 2.0 * gradient_bytes, 4)


def bucketing(e: int, gradient_bytes: int) -> Traffic:
    """Per parameter: a micro-batch's gradient is copied to where it is reduced from, in the dtype of the reduction.

    FSDP joins the gradients of a flat parameter's views, FSDP2 of a unit's parameters (chunk_cat),
    DeepSpeed fills its buckets (contiguous_gradients).
    """
    return Traffic(0.0, 0, float(e + gradient_bytes), 1)


def copied_gathers(e: int) -> Traffic:
    """Per parameter: what a forward and what a backward pass gathered is copied into the parameter."""
    return Traffic(0.0, 0, 2 * 2.0 * e, 2)


def widened_buckets(e: int) -> Traffic:
    """Per parameter: gradients are joined, divided, widened to fp32, and after their sum the same way back."""
    return Traffic(0.0, 0, 4.0 * e + (e + 4) + (4 + e) + 2.0 * e, 5)


def fp8_casts(e: int) -> float:
    """Bytes for each element of a product's operands that becomes fp8: read, and written twice, as Hopper's tensor
    cores take both operands in one order only. Its maximum comes with what produces it (Transformer Engine's delayed
    scaling; torchao under torch.compile).
    """
    return e + 2.0


def reduction_casts(e: int) -> Traffic:
    """A layer's two tensor-parallel sums a pass in fp32: each cast there and back."""
    return Traffic(2 * (2 * e + 8), 4, 2 * (2 * e + 8), 4)
