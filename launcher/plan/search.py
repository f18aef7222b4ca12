"""Search over all layouts of a job: exhaustive in effect, since only what is provably no better is skipped."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from heapq import heapify, heappop, heappush
from typing import NamedTuple, NoReturn

from launcher.cost.model import CostModel
from launcher.errors import InputError, NoLayoutFits
from launcher.layout import Layout, LayoutRequest
from launcher.layout.job import Job
from launcher.layout.legality import Problem
from launcher.plan.floors import Floors, PassFloor, least_memory
from launcher.plan.nearest import no_fit_message, refusal
from launcher.plan.result import Candidate, SearchResult
from launcher.plan.space import Degrees, Passes, Refuse, Schedule, Space

UNFIT = "do not fit in memory"
SLOWER = "are slower than the plans shown"
UNINTERLEAVED = "micro-batches do not divide for interleaving"
ROUNDING = 1 - 1e-9  # a bound is compared with an estimate that was summed in another order


def search(
    job: Job, request: LayoutRequest, *, top: int = 10, model: CostModel | None = None, refuse: Refuse | None = None
) -> SearchResult:
    """The `top` fastest layouts that are legal and fit, keeping what `request` pins; ties in a fixed order.

    `refuse` adds reasons against a layout to the rules of legality: what the program that is to run it cannot do.

    Raises InputError with every rule in the way where no layout is legal, NoLayoutFits with the nearest miss and the
    cheapest change that helps where none fits.
    """
    return _Search(Space(job, request, refuse), model or CostModel(job), max(1, top)).run()


class _Core(NamedTuple):
    """Layouts that share degrees and passes, with the lower bound of their times; sorts by it, then by its number."""

    floor_s: float
    number: int
    degrees: Degrees
    passes: Passes
    schedules: list[Schedule]
    floor: PassFloor


class _Leaf(NamedTuple):
    """One layout that is not yet estimated, with its lower bound; among cores it sorts by that, then by its place."""

    floor_s: float
    number: int
    place: int
    layout: Layout


class _Ranked(NamedTuple):
    """A candidate in its place: by time, then memory, then place in the space."""

    step_time_s: float
    memory_bytes: float
    number: int
    place: int
    candidate: Candidate


class _Search:
    """Best first: cores by their bound, then their layouts by a sharper one, until no bound is below the worst kept."""

    def __init__(self, space: Space, model: CostModel, top: int) -> None:
        self.space, self.model, self.top = space, model, top
        self.job, self.request = space.job, space.request
        self.floors = Floors(space, model)
        self.ranked: list[_Ranked] = []
        self.rejected: Counter[str] = Counter()
        self.cores: list[_Core] = []
        self.leaves: list[_Leaf] = []
        self.illegal: list[list[Problem]] = []

    def run(self) -> SearchResult:
        for degrees in self.space.degrees():
            self._add(degrees)
        heapify(self.cores)
        while (floor := self._least_floor()) is not None and floor * ROUNDING <= self._threshold:
            if self.leaves and self.leaves[0].floor_s == floor:
                self._judge(heappop(self.leaves))
            else:
                self._open(heappop(self.cores))
        self.rejected[SLOWER] += len(self.leaves) + sum(self._size(core.degrees, core.schedules) for core in self.cores)
        if not self.ranked:
            self._give_up()
        candidates = tuple(ranked.candidate for ranked in self.ranked)
        rejected = {reason: count for reason, count in sorted(self.rejected.items()) if count}
        return SearchResult(self.job, self.request, candidates, rejected, sum(rejected.values()) + len(candidates))

    @property
    def _threshold(self) -> float:
        """Seconds that a layout must not exceed to be among the best."""
        return self.ranked[-1].step_time_s if len(self.ranked) == self.top else float("inf")

    def _least_floor(self) -> float | None:
        heads = [heap[0][0] for heap in (self.cores, self.leaves) if heap]
        return min(heads, default=None)

    def _size(self, degrees: Degrees, schedules: list[Schedule]) -> int:
        """Layouts of one core."""
        return len(schedules) * len(self.space.zero_stages(degrees)) * len(self.floors.orders(degrees))

    def _add(self, degrees: Degrees) -> None:
        """The cores of these degrees, but for those that cannot fit whatever their schedule and ZeRO stage."""
        broken = self.floors.broken_by_all(degrees)
        if broken:
            self._reject(broken)
            return
        room = self.model.usable_bytes - min(self.floors.states(degrees))
        schedules: list[Schedule] = []
        micro_batch = 0
        for passes in self.space.passes(degrees):
            if passes.micro_batch != micro_batch:
                micro_batch = passes.micro_batch
                schedules = self.space.schedules(degrees, micro_batch)
            if not schedules:
                self._reject([Problem(UNINTERLEAVED, "")])
                continue
            floor = self.floors.passes(degrees, passes)
            if floor.activation_bytes(schedules[0]) > room:  # more virtual stages hold more
                self.rejected[UNFIT] += self._size(degrees, schedules)
                continue
            fastest = floor.step_time_s(schedules[-1])  # more virtual stages wait less
            self.cores.append(_Core(fastest, len(self.cores), degrees, passes, schedules, floor))

    def _reject(self, broken: list[Problem]) -> None:
        self.rejected[broken[0].rule] += 1
        self.illegal.append(broken)

    def _open(self, core: _Core) -> None:
        """Put the layouts of a core that may fit and be among the best in line, each with its own bound."""
        degrees, floor, usable, place = core.degrees, core.floor, self.model.usable_bytes, 0
        orders = self.floors.orders(degrees)
        kinds = list(zip(self.space.zero_stages(degrees), self.floors.states(degrees), strict=True))
        for schedule in core.schedules:
            seconds, activations = floor.step_time_s(schedule), floor.activation_bytes(schedule)
            for zero_stage, states in kinds:
                if states + activations > usable:
                    self.rejected[UNFIT] += len(orders)
                    continue
                for order in orders:
                    place += 1
                    exposed = self.floors.exposed_gradients_s(degrees, floor, zero_stage=zero_stage, order=order)
                    if (seconds + exposed) * ROUNDING > self._threshold:
                        self.rejected[SLOWER] += 1
                        continue
                    layout = self.space.layout(degrees, core.passes, schedule, zero_stage=zero_stage, axis_order=order)
                    if refused := self.space.refused(layout):
                        self._reject(refused)
                        continue
                    heappush(self.leaves, _Leaf(seconds + exposed, core.number, place, layout))

    def _judge(self, leaf: _Leaf) -> None:
        estimate = self.model.estimate(leaf.layout)
        if not estimate.fits:
            self.rejected[UNFIT] += 1
            return
        candidate = Candidate(leaf.layout, estimate)
        ranked = _Ranked(estimate.step_time_s, estimate.memory_bytes_per_gpu, leaf.number, leaf.place, candidate)
        if len(self.ranked) == self.top and ranked[:4] > self.ranked[-1][:4]:
            self.rejected[SLOWER] += 1
        elif broken := self.space.broken(leaf.layout):
            self._reject(broken)
        else:
            self._rank(ranked)

    def _rank(self, place: _Ranked) -> None:
        insort(self.ranked, place, key=lambda ranked: ranked[:4])
        if len(self.ranked) > self.top:
            self.ranked.pop()
            self.rejected[SLOWER] += 1

    def _give_up(self) -> NoReturn:
        nearest = least_memory(self.space, self.model)
        if nearest is None:
            raise InputError(refusal(self.space, self.illegal))
        raise NoLayoutFits(no_fit_message(self.space, self.model, nearest))
