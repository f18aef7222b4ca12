"""Search over all layouts of a job: exhaustive in effect, since only what is provably no better is skipped."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from typing import NamedTuple, NoReturn

from launcher.cost.model import CostModel
from launcher.errors import InputError, NoLayoutFits
from launcher.layout import Layout, LayoutRequest
from launcher.layout.job import Job
from launcher.layout.legality import Problem, broken_rules
from launcher.plan.floors import Floors, least_memory
from launcher.plan.nearest import no_fit_message, refusal
from launcher.plan.result import Candidate, SearchResult
from launcher.plan.space import Degrees, Passes, Space

UNFIT = "do not fit in memory"
SLOWER = "are slower than the plans shown"
ROUNDING = 1 - 1e-9  # a bound is compared with an estimate that was summed in another order


def search(job: Job, request: LayoutRequest, *, top: int = 10, model: CostModel | None = None) -> SearchResult:
    """The `top` fastest layouts that are legal and fit, keeping what `request` pins; ties in a fixed order.

    Raises InputError with every rule in the way where no layout is legal, NoLayoutFits with the nearest miss and the
    cheapest change that helps where none fits.
    """
    return _Search(Space(job, request), model or CostModel(job), max(1, top)).run()


class _Core(NamedTuple):
    """A layout but for its ZeRO stage and axis order, with its bounds; sorts by time, then by place in the space."""

    floor_s: float
    number: int
    activation_bytes: float
    degrees: Degrees
    passes: Passes


class _Ranked(NamedTuple):
    """A candidate in its place: by time, then memory, then place in the space."""

    step_time_s: float
    memory_bytes: float
    number: int
    leaf: int
    candidate: Candidate


class _Search:
    """One search: bounds of every core first, then estimates in the order of their time bounds."""

    def __init__(self, space: Space, model: CostModel, top: int) -> None:
        self.space, self.model, self.top = space, model, top
        self.job, self.request = space.job, space.request
        self.floors = Floors(space, model)
        self.ranked: list[_Ranked] = []
        self.rejected: Counter[str] = Counter()
        self.cores: list[_Core] = []
        self.illegal: list[list[Problem]] = []

    def run(self) -> SearchResult:
        for degrees in self.space.degrees():
            self._add(degrees)
        for core in sorted(self.cores):
            if core.floor_s * ROUNDING > self._threshold:
                self.rejected[SLOWER] += self.floors.leaves(core.degrees)
            else:
                self._expand(core)
        if not self.ranked:
            self._give_up()
        candidates = tuple(ranked.candidate for ranked in self.ranked)
        searched = sum(self.rejected.values()) + len(candidates)
        return SearchResult(self.job, self.request, candidates, dict(sorted(self.rejected.items())), searched)

    @property
    def _threshold(self) -> float:
        """Seconds that a layout must not exceed to be among the best."""
        return self.ranked[-1].step_time_s if len(self.ranked) == self.top else float("inf")

    def _add(self, degrees: Degrees) -> None:
        """Every core of these degrees, with its bounds; those whose memory bound is too high are set apart."""
        broken = self.floors.broken_by_all(degrees)
        if broken:
            self._reject(broken)
            return
        leaves, states = self.floors.leaves(degrees), min(self.floors.states(degrees))
        usable = self.model.usable_bytes
        for passes in self.space.passes(degrees):
            if not self.floors.interleaves(degrees, passes):
                self._reject([Problem("micro-batches do not divide for interleaving", "")])
                continue
            activations = self.floors.activations(degrees, passes)
            if states + activations > usable:
                self.rejected[UNFIT] += leaves
            else:
                floor = self.floors.step_time(degrees, passes)
                self.cores.append(_Core(floor, len(self.cores), activations, degrees, passes))

    def _reject(self, broken: list[Problem]) -> None:
        self.rejected[broken[0].rule] += 1
        self.illegal.append(broken)

    def _expand(self, core: _Core) -> None:
        """Estimate every ZeRO stage and axis order of a core that may be among the best."""
        leaf, usable = 0, self.model.usable_bytes
        orders = self.floors.orders(core.degrees)
        states = self.floors.states(core.degrees)
        for zero_stage, state_bytes in zip(self.space.zero_stages(core.degrees), states, strict=True):
            if state_bytes + core.activation_bytes > usable:
                self.rejected[UNFIT] += len(orders)
                continue
            for order in orders:
                leaf += 1
                layout = self.space.layout(core.degrees, core.passes, zero_stage=zero_stage, axis_order=order)
                self._judge(core, leaf, layout)

    def _judge(self, core: _Core, leaf: int, layout: Layout) -> None:
        estimate = self.model.estimate(layout)
        if not estimate.fits:
            self.rejected[UNFIT] += 1
            return
        place = _Ranked(
            estimate.step_time_s, estimate.memory_bytes_per_gpu, core.number, leaf, Candidate(layout, estimate)
        )
        if len(self.ranked) == self.top and place[:4] > self.ranked[-1][:4]:
            self.rejected[SLOWER] += 1
        elif broken := broken_rules(self.job, layout):
            self._reject(broken)
        else:
            self._rank(place)

    def _rank(self, place: _Ranked) -> None:
        insort(self.ranked, place, key=lambda ranked: ranked[:4])
        if len(self.ranked) > self.top:
            self.ranked.pop()
            self.rejected[SLOWER] += 1

    def _give_up(self) -> NoReturn:
        nearest = least_memory(self.space, self.model)
        if nearest is None:
            raise InputError(refusal(self.job, self.request, self.illegal))
        raise NoLayoutFits(no_fit_message(self.space, self.model, nearest))
