"""Collectives as nccl-tests runs and checks them: buffers out of place and in place, sizes, factors, wrong elements.

Definitions: https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md and src/*.cu there. The size is the
whole buffer of an all-reduce, the gathered buffer of an all-gather, the buffer to scatter of a reduce-scatter, a rank's
send buffer of an all-to-all and of a send; algbw = size / time, busbw = algbw × a factor that makes it comparable to
the rate of a link. In place: the result of a reduction takes the place of the input, a rank's part of a gathered
buffer is in that buffer. torch reduces in place only; an all-to-all and a send have no such form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.distributed as dist

from launcher.worker.parallel.torch_names import all_gather_single, reduce_scatter_single

PERIOD = 8  # values repeat, small whole numbers, so that sums are exact in fp32 and, up to 36 ranks, in bf16
WIPED = -1  # no rank sends it
LARGEST_EXACT = {torch.float32: 2**24, torch.bfloat16: 2**8, torch.float16: 2**11}


@dataclass(frozen=True)
class AxisGroup:
    """The ranks that this rank communicates with: along an axis of the plan, on its rail, or all of them.

    `ranks`: none, where this rank has no part. `groups`: all that are measured with it; `in_turn`: one after another.
    """

    name: str
    group: dist.ProcessGroup | None
    ranks: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...] = ()
    in_turn: bool = False

    @property
    def size(self) -> int:
        return len(self.groups[0] if self.groups else self.ranks)

    @property
    def turns(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """The groups that are measured at once, one set after another."""
        return tuple((group,) for group in self.groups) if self.in_turn else (self.groups,)

    @property
    def index(self) -> int:
        return dist.get_rank(self.group)


@dataclass(frozen=True)
class Collective:
    """One collective on buffers of its own: `call` runs it, `wrong` counts elements that are not as they should be.

    `fill` puts the inputs back and wipes what is to be received, so that an old result cannot pass for a new one;
    `num_bytes` is nccl-tests' size, `count` its number of elements.
    """

    call: Callable[[], object]
    fill: Callable[[], object]
    wrong: Callable[[], int]
    num_bytes: int
    count: int


Make = Callable[[AxisGroup, int, torch.dtype, torch.device], Collective]


def busbw_factor(operation: str, ranks: int) -> float:
    """busbw / algbw."""
    if operation == "send_recv":
        return 1.0
    return (2 if operation == "all_reduce" else 1) * (ranks - 1) / ranks


# Rank r's input holds values(count, r), so that what every rank must receive is known.


def values(count: int, shift: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return ((torch.arange(count, device=device) + shift) % PERIOD).to(dtype)


def sums(count: int, shift: int, ranks: int, device: torch.device) -> torch.Tensor:
    """What adding up values(count, shift + r) over r in 0 … ranks-1 gives, in fp64."""
    one = torch.arange(PERIOD, device=device)
    table = sum(((one + r) % PERIOD for r in range(ranks)), torch.zeros(PERIOD, device=device, dtype=torch.int64))
    return table.double()[(torch.arange(count, device=device) + shift) % PERIOD]


def differing(found: torch.Tensor, expected: torch.Tensor, *, largest: int) -> int:
    """Elements that differ; where sums reach past what the dtype counts exactly, by more than its rounding."""
    exact = LARGEST_EXACT[found.dtype]
    allowed = 0.0 if largest <= exact else 4.0 * largest / exact
    return int(((found.double() - expected.double()).abs() > allowed).sum())


def all_reduce(team: AxisGroup, size: int, dtype: torch.dtype, device: torch.device) -> Collective:
    count, n = max(1, size // dtype.itemsize), team.size
    buffer = torch.empty(count, dtype=dtype, device=device)
    return Collective(
        call=lambda: dist.all_reduce(buffer, group=team.group),
        fill=lambda: buffer.copy_(values(count, team.index, dtype, device)),
        wrong=lambda: differing(buffer, sums(count, 0, n, device), largest=n * PERIOD),
        num_bytes=count * dtype.itemsize,
        count=count,
    )


def gathered(
    team: AxisGroup, size: int, dtype: torch.dtype, device: torch.device, *, inside: bool
) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Elements of a rank's part, a buffer of all parts, and this rank's part, in that buffer or apart from it."""
    count = max(1, size // dtype.itemsize // team.size)
    whole = torch.empty(count * team.size, dtype=dtype, device=device)
    own = whole[team.index * count : (team.index + 1) * count]
    return count, whole, own if inside else torch.empty(count, dtype=dtype, device=device)


def all_gather(
    team: AxisGroup, size: int, dtype: torch.dtype, device: torch.device, *, inside: bool = False
) -> Collective:
    (count, whole, part), n = gathered(team, size, dtype, device, inside=inside), team.size
    expected = torch.cat([values(count, r, dtype, device) for r in range(n)])
    return Collective(
        call=lambda: all_gather_single(whole, part, group=team.group),
        fill=lambda: (whole.fill_(WIPED), part.copy_(values(count, team.index, dtype, device))),
        wrong=lambda: differing(whole, expected, largest=PERIOD),
        num_bytes=count * n * dtype.itemsize,
        count=count,
    )


def reduce_scatter(
    team: AxisGroup, size: int, dtype: torch.dtype, device: torch.device, *, inside: bool = False
) -> Collective:
    (count, whole, part), n = gathered(team, size, dtype, device, inside=inside), team.size
    return Collective(
        call=lambda: reduce_scatter_single(part, whole, group=team.group),
        fill=lambda: (part.fill_(WIPED), whole.copy_(values(count * n, team.index, dtype, device))),
        wrong=lambda: differing(part, sums(count, team.index * count, n, device), largest=n * PERIOD),
        num_bytes=count * n * dtype.itemsize,
        count=count,
    )


def all_to_all(team: AxisGroup, size: int, dtype: torch.dtype, device: torch.device) -> Collective:
    count, n = max(1, size // dtype.itemsize // team.size), team.size
    given = torch.empty(count * n, dtype=dtype, device=device)
    taken = torch.empty(count * n, dtype=dtype, device=device)

    def sent(source: int, target: int) -> torch.Tensor:
        return values(count, 3 * source + target, dtype, device)

    return Collective(
        call=lambda: dist.all_to_all_single(taken, given, group=team.group),
        fill=lambda: (given.copy_(torch.cat([sent(team.index, r) for r in range(n)])), taken.fill_(WIPED)),
        wrong=lambda: differing(taken, torch.cat([sent(r, team.index) for r in range(n)]), largest=PERIOD),
        num_bytes=count * n * dtype.itemsize,
        count=count,
    )


def send_recv(team: AxisGroup, size: int, dtype: torch.dtype, device: torch.device) -> Collective:
    """Every rank sends to the next one of its group and receives from the one before, all at once."""
    count, n = max(1, size // dtype.itemsize), team.size
    given = torch.empty(count, dtype=dtype, device=device)
    taken = torch.empty(count, dtype=dtype, device=device)
    following, previous = team.ranks[(team.index + 1) % n], team.ranks[(team.index - 1) % n]

    def call() -> None:
        exchange = [
            dist.P2POp(dist.isend, given, following, team.group),
            dist.P2POp(dist.irecv, taken, previous, team.group),
        ]
        for work in dist.batch_isend_irecv(exchange):
            work.wait()

    return Collective(
        call=call,
        fill=lambda: (given.copy_(values(count, team.index, dtype, device)), taken.fill_(WIPED)),
        wrong=lambda: differing(taken, values(count, (team.index - 1) % n, dtype, device), largest=PERIOD),
        num_bytes=count * dtype.itemsize,
        count=count,
    )


def _inside(make: Callable[..., Collective]) -> Make:
    return lambda team, size, dtype, device: make(team, size, dtype, device, inside=True)


OUT_OF_PLACE: Mapping[str, Make] = MappingProxyType(
    {"all_gather": all_gather, "reduce_scatter": reduce_scatter, "all_to_all": all_to_all, "send_recv": send_recv}
)
IN_PLACE: Mapping[str, Make] = MappingProxyType(
    {"all_reduce": all_reduce, "all_gather": _inside(all_gather), "reduce_scatter": _inside(reduce_scatter)}
)
