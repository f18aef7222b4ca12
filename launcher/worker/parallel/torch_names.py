"""Collectives by their names in torch 2.13; before, torch has them under others."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def all_gather_single(whole: Tensor, part: Tensor, *, group: dist.ProcessGroup | None) -> None:
    """Gather every rank's part into one tensor."""
    call = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    call(whole, part, group=group)


def reduce_scatter_single(part: Tensor, whole: Tensor, *, group: dist.ProcessGroup | None) -> None:
    """Sum every rank's tensor, of which this rank keeps its part."""
    call = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    call(part, whole, group=group)
