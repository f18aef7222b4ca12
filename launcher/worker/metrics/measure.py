"""Timing on whatever device a rank has, and gathering what ranks measured."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from statistics import median
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its queue; a CPU has none."""
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


@dataclass(frozen=True)
class Timing:
    """Of one call, over many in a row: mean, median and 99th percentile; `cpu_s`: median of this process's CPU seconds,
    which calls that other processes disturb do not move (0 on a GPU).
    """

    mean_s: float
    p50_s: float
    p99_s: float
    cpu_s: float
    iterations: int


def timed_calls(call: Callable[[], object], *, device: torch.device, iterations: int) -> Timing:
    """`iterations` calls in a row under one clock, as nccl-tests does; the end of each call is noted as well.

    On a GPU by events on the stream. Percentiles by nearest rank, as nccl-tests (src/util.cu, computeIterStats).
    """
    synchronize(device)
    on_cpu = device.type == "cpu"
    begin, used = time.perf_counter(), [time.process_time()]
    marks = [_mark(device)]
    for _ in range(iterations):
        call()
        marks.append(_mark(device))
        if on_cpu:
            used.append(time.process_time())
    synchronize(device)
    total = time.perf_counter() - begin
    cpu = median(used[i + 1] - used[i] for i in range(iterations)) if on_cpu else 0.0
    each = sorted(_between(marks[i], marks[i + 1]) for i in range(iterations))
    p99 = each[min(iterations - 1, ceil(iterations * 99 / 100) - 1)]
    return Timing(total / iterations, each[iterations // 2], p99, cpu, iterations)


Mark = float | torch.cuda.Event


def _mark(device: torch.device) -> Mark:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _between(first: Mark, second: Mark) -> float:
    if isinstance(first, float) or isinstance(second, float):
        return float(second) - float(first)  # type: ignore[arg-type]
    milliseconds: float = first.elapsed_time(second)
    return milliseconds / 1e3


def from_all_ranks(value: T) -> list[T]:
    """`value` of every rank, in rank order, on every rank. Collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    gathered: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return [item for item in gathered if item is not None]


@dataclass(frozen=True)
class Sustained:
    """Calls in a stretch of time during which every rank was at work: seconds of one, wall and CPU."""

    seconds: float
    cpu_s: float
    calls: int


def sustained(call: Callable[[], object], *, device: torch.device, seconds: float) -> Sustained:
    """How long a call takes while all ranks make the same one, on cores or memory that they may share. Collective.

    All begin together and go on for as long, at least three calls of the slowest rank. A rank that is done leaves its
    share of the cores to the others, so each counts its calls over the time from the first begin on its host to the
    last end.
    """
    call()  # and the pages of its buffers
    barrier()
    once = max(end - begin for _, begin, end in from_all_ranks(_stretch(call, device, 0.0)[:3]))
    barrier()
    host, begin, end, calls, cpu_s = _stretch(call, device, max(seconds, 3 * once))
    together = [found for found in from_all_ranks((host, begin, end)) if found[0] == host]
    window = max(found[2] for found in together) - min(found[1] for found in together)
    return Sustained(window / calls, cpu_s / calls, calls)


def _stretch(call: Callable[[], object], device: torch.device, seconds: float) -> tuple[str, float, float, int, float]:
    """Host, begin and end by the machine's clock, calls, CPU seconds."""
    calls, batch, used = 0, 1, time.process_time()
    begin = time.monotonic()
    while True:
        for _ in range(batch):
            call()
        synchronize(device)
        calls += batch
        now = time.monotonic()
        if now - begin >= seconds:
            return socket.gethostname(), begin, now, calls, time.process_time() - used
        batch = 1 if device.type == "cpu" else 2 * batch  # a GPU's queue is kept full


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()


def versions(device: torch.device) -> dict[str, str]:
    """The software that measured."""
    found = {"torch": str(torch.__version__)}
    if device.type == "cuda":
        found |= {"cuda": str(torch.version.cuda), "nccl": ".".join(map(str, torch.cuda.nccl.version()))}  # type: ignore[no-untyped-call]
    return found
