"""RMSNorm (Zhang and Sennrich 2019) that keeps its input and one fp32 number a row for the backward pass.

That is what torch's fused CUDA kernel keeps; on a CPU torch composes the norm and keeps two fp32 copies of its input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """x / rms(x) · weight over the last dimension, in fp32 whatever the dtype of x."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cuda":
            return super().forward(x)
        out: Tensor = _RmsNorm.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
        return out


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        inverse = torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, inverse)
        return (wide * inverse * weight.float()).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        unit, grad = x.float() * inverse, grads[0].float()
        of_weight = (grad * unit).sum(dim=tuple(range(x.dim() - 1))).to(weight.dtype)
        scaled = grad * weight.float()
        of_input = (scaled - unit * (scaled * unit).mean(dim=-1, keepdim=True)) * inverse
        return of_input.to(x.dtype), of_weight, None
