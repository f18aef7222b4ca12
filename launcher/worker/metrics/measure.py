"""Timing on whatever device a rank has, and gathering what ranks measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; a CPU has always."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_call(call: Callable[[], object], *, device: torch.device, warmup: int, iterations: int) -> float:
    """Mean seconds of `call` over `iterations` calls in a row, after `warmup` calls, the device's queue included.

    As nccl-tests does (src/common.cu, BenchTime): one clock around all calls, not one around each.
    """
    for _ in range(warmup):
        call()
    synchronize(device)
    begin = time.perf_counter()
    for _ in range(iterations):
        call()
    synchronize(device)
    return (time.perf_counter() - begin) / iterations


def from_all_ranks(value: T) -> list[T]:
    """`value` of every rank, in rank order, on every rank. Collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    gathered: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return [item for item in gathered if item is not None]
