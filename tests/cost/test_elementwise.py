"""Bytes that memory-bound operators move, against what PyTorch's own operators read and write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from launcher.cost import elementwise
from launcher.cost.elementwise import Traffic

BF16 = torch.bfloat16
TOKENS, HIDDEN = 256, 2048
VIEWS = {"view", "expand", "split", "chunk", "slice", "transpose", "unsqueeze", "squeeze", "detach", "t", "alias"}


def tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from tensors(each)


class Counted(TorchDispatchMode):
    """Counts the kernels that run and the bytes of what they are given and give back."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes, self.kernels = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ not in VIEWS:
            moved = [*tensors(args), *tensors(out)]
            # A tensor that is expanded (a row's mean, say) is read as it is stored.
            self.num_bytes += sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in moved)
            self.kernels += 1
        return out


def counted(compute: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> tuple[float, int, float, int]:
    """Bytes per element of the first input and kernels, forward and backward."""
    with Counted() as ahead:
        out = compute(*inputs)
    gradient = torch.ones_like(out)
    with Counted() as back:
        torch.autograd.grad(out, [t for t in inputs if t.requires_grad], gradient)
    elements = inputs[0].numel()
    return ahead.num_bytes / elements, ahead.kernels, back.num_bytes / elements, back.kernels


def tensor(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=BF16).requires_grad_()


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """RMSNorm as models write it (Llama)."""
    single = x.float()
    scale = torch.rsqrt(single.pow(2).mean(-1, keepdim=True) + 1e-6)
    return weight * (single * scale).to(x.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def silu_gate(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return F.silu(gate) * up


HEADS = HIDDEN // 128
TABLE = torch.randn(TOKENS, 1, 128, dtype=BF16)


@pytest.mark.parametrize(
    ("compute", "inputs", "traffic"),
    [
        (rms_norm, (tensor(TOKENS, HIDDEN), tensor(HIDDEN)), elementwise.norm(2, fused=False)),
        (rotate, (tensor(TOKENS, HEADS, 128), TABLE, TABLE), elementwise.rotary(2, fused=False)),
        (
            silu_gate,
            (tensor(TOKENS, HIDDEN), tensor(TOKENS, HIDDEN)),
            elementwise.activation(2, gated=True, fused=False),
        ),
    ],
    ids=["RMSNorm", "rotary", "SwiGLU"],
)
def test_operators_move_as_many_bytes_as_pytorchs(
    compute: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...], traffic: Traffic
) -> None:
    ahead, kernels, back, kernels_back = counted(compute, *inputs)
    assert (kernels, kernels_back) == (traffic.forward_kernels, traffic.backward_kernels)
    assert ahead == pytest.approx(traffic.forward_bytes, rel=0.03)
    assert back == pytest.approx(traffic.backward_bytes, rel=0.03)
