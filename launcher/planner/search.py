"""Search over all layouts of a job: exhaustive in effect, since it skips only layouts that are provably no better."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from heapq import heapify, heappop, heappush
from itertools import product
from typing import NamedTuple, NoReturn

from launcher.cost.bounds import activation_bytes
from launcher.cost.interval import most_bytes
from launcher.cost.model import CostModel
from launcher.errors import InputError, NoLayoutFits
from launcher.garbage import no_garbage_collection
from launcher.layout import Layout, LayoutRequest
from launcher.layout.job import Job
from launcher.layout.legality import UNINTERLEAVED, Problem, problems
from launcher.planner.lower_bounds import LowerBounds, PassBound, PassOption, least_memory
from launcher.planner.nearest import no_fit_message, refusal
from launcher.planner.preference import handicap
from launcher.planner.result import Candidate, Refused, SearchResult
from launcher.planner.space import Degrees, PassConfig, Refuse, Schedule, Sharding, Space
from launcher.units import GIB, format_bytes

UNFIT = "do not fit in memory"
SLOWER = "are slower than the plans shown"
OTHER_ORDER = "differ from a plan shown in axis order alone"
ROUNDING = 1 - 1e-9  # a bound is compared with an estimate that was summed in another order


LESS = 0.8  # of the memory of a plan: what the next one of `less_memory` may need


def search(
    job: Job, request: LayoutRequest, *, top: int = 10, model: CostModel | None = None, refuse: Refuse | None = None
) -> SearchResult:
    """Return the `top` best layouts that are legal, fit, and satisfy `request`; ties are in a fixed order.

    The best is the fastest, apart from a handicap (`preference`). Layouts that run out of memory with a higher
    probability than `request.risk` are left out if there are safer ones.

    Of layouts that differ only in the axis order, only the best is returned.

    `refuse` adds reasons against a layout to the rules of legality: what the program that will run it cannot do.

    Raises InputError with every broken rule if no layout is legal, and NoLayoutFits with the nearest miss and the
    cheapest change that helps if none fits.
    """
    with no_garbage_collection():
        model = model or CostModel(job)
        found, last = _searched(Space(job, request, refuse), model, top)
        if found is None:
            last.give_up()
        if request.offload_optimizer is not None or not found.best.layout.offload_optimizer:
            return found
        without, _ = _searched(Space(job, replace(request, offload_optimizer=False), refuse), model, 1)
        return replace(found, without_offload=without.best if without else None)


def _searched(space: Space, model: CostModel, top: int) -> tuple[SearchResult | None, _Search]:
    """Return what is found within the accepted risk, or else within any: a risk is better than no plan, and the reasons
    say so.
    """
    safe, most = (room_bytes(space.request, model, risk=risk) for risk in (space.request.risk, 1.0))
    search_within = _Search(space, model, max(1, top), safe)
    found = search_within.run()
    if found is None and most > safe:
        search_within = _Search(space, model, max(1, top), most)
        found = search_within.run()
    return found, search_within


def less_memory(
    first: SearchResult, *, most: int, model: CostModel, refuse: Refuse | None = None
) -> tuple[Candidate, ...]:
    """The best of a search, then the best in less and less memory: at most `most` plans, each in a share of the memory
    of the one before it.
    """
    found, request = [first.best], first.request
    with no_garbage_collection():
        while len(found) < most:
            room = LESS * found[-1].estimate.memory_bytes_per_gpu / GIB
            space = Space(first.job, replace(request, max_memory_gib=room), refuse)
            within, _ = _searched(space, model, 1)
            if within is None:
                break
            found.append(within.best)
    return tuple(found)


def room_bytes(request: LayoutRequest, model: CostModel, *, risk: float) -> float:
    """Bytes of a GPU that a layout may be estimated to need."""
    usable = model.usable_bytes
    most = usable * (1 - request.memory_margin)
    most = most if request.max_memory_gib is None else min(most, request.max_memory_gib * GIB)
    safe = most_bytes(usable, risk=risk) if model.job.cluster.node.gpu.kind == "cuda" else usable
    return min(most, safe)


class _Unit(NamedTuple):
    """Layouts of the same degrees, family of schedules and micro batch, with the lower bound of their times.

    Sorts by it, then by number.

    The bound is coarse at first, of compute alone. When that is among the lowest, the unit gets its `pass_options`, and
    the bound of the fastest of them.
    """

    bound_s: float
    number: int
    degrees: Degrees
    micro_batch: int
    schedules: Sequence[Schedule]
    pass_options: Sequence[PassOption] = ()


class _Leaf(NamedTuple):
    """One layout that is not estimated yet, sorted by its lower bound, then by its unit and place."""

    bound_s: float
    number: int
    place: int
    degrees: Degrees
    pass_config: PassConfig
    schedule: Schedule
    sharding: Sharding
    axis_order: str


class _Ranked(NamedTuple):
    """A candidate with its sort key: time with its handicap, then memory, then place in the space."""

    handicapped_s: float
    memory_bytes: float
    number: int
    place: int
    candidate: Candidate


class _Search:
    """Best-first search: units by their bound, then layouts by a sharper one, until no bound beats the worst kept."""

    def __init__(self, space: Space, model: CostModel, top: int, room: float) -> None:
        self.space, self.model, self.top, self.room_bytes = space, model, top, room
        self.job, self.request = space.job, space.request
        self.lower_bounds = LowerBounds(space, model)
        self.ranked: list[_Ranked] = []
        self.orders: dict[Layout, _Ranked] = {}  # the ranked ones, by layout without its axis order
        self.rejected: Counter[str] = Counter()
        self.units: list[_Unit] = []
        self.leaves: list[_Leaf] = []
        self.illegal: list[list[Problem]] = []
        self.refused: Refused | None = None  # the fastest that only the software refuses

    def run(self) -> SearchResult | None:
        """What was found; None where nothing has room."""
        for degrees in self.space.degrees():
            self._add(degrees)
        heapify(self.units)
        while (bound := self._least_bound()) is not None and bound * ROUNDING <= self._threshold:
            if self.leaves and self.leaves[0].bound_s == bound:
                self._judge(heappop(self.leaves))
            else:
                unit = heappop(self.units)
                if unit.pass_options:
                    self._open(unit)
                elif sharper := self._sharpened(unit):
                    heappush(self.units, sharper)
        self.rejected[SLOWER] += len(self.leaves) + sum(map(self._left, self.units))
        if not self.ranked:
            return None
        candidates = tuple(ranked.candidate for ranked in self.ranked)
        rejected = {reason: count for reason, count in sorted(self.rejected.items()) if count}
        return SearchResult(
            self.job, self.request, candidates, rejected, sum(rejected.values()) + len(candidates), self.refused
        )

    @property
    def _threshold(self) -> float:
        """The time, with its handicap, that a layout must not exceed to be among the best."""
        return self.ranked[-1].handicapped_s if len(self.ranked) == self.top else float("inf")

    def _least_bound(self) -> float | None:
        heads = [heap[0][0] for heap in (self.units, self.leaves) if heap]
        return min(heads, default=None)

    def _left(self, unit: _Unit) -> int:
        """Return the number of layouts of a unit that was not opened."""
        ways = len(unit.pass_options) or len(self.space.pass_configs(unit.degrees, unit.micro_batch))
        return ways * self._size(unit.degrees, unit.schedules)

    def _size(self, degrees: Degrees, schedules: Sequence[Schedule]) -> int:
        """Return the number of layouts with one way to run a micro-batch."""
        return len(schedules) * len(self.space.shardings(degrees)) * len(self.lower_bounds.orders(degrees))

    def _add(self, degrees: Degrees) -> None:
        """Add the units of these degrees."""
        if broken := self.lower_bounds.broken_by_all(degrees):
            self._reject(broken)
            return
        for family, micro_batch in product(self.space.families(degrees), self.space.micro_batches(degrees)):
            if schedules := self.space.schedules(family, micro_batch):
                self._add_unit(family, micro_batch, schedules)
            elif not family.short_ends:
                self._reject([Problem(UNINTERLEAVED, "")])

    def _add_unit(self, degrees: Degrees, micro_batch: int, schedules: Sequence[Schedule]) -> None:
        """Add one unit, with the bound of its most virtual stages: more of them wait less. None where parameters,
        gradients and optimizer states alone do not fit.
        """
        if min(self.lower_bounds.states(degrees)) > self.room_bytes:
            ways = len(self.space.pass_configs(degrees, micro_batch))
            self.rejected[UNFIT] += ways * self._size(degrees, schedules)
            return
        bound = self.lower_bounds.compute(degrees, micro_batch).step_time_s(schedules[-1])
        self.units.append(_Unit(bound, len(self.units), degrees, micro_batch, schedules))

    def _sharpened(self, unit: _Unit) -> _Unit | None:
        """Return the unit with the pass options that may fit, and the bound of their least recomputation: more of it
        takes longer. None where none fits with any schedule and ZeRO stage.

        More virtual stages hold more activations: those of the fewest decide.
        """
        degrees, lower_bounds = unit.degrees, self.lower_bounds
        room = self.room_bytes - min(lower_bounds.states(degrees))
        held = lower_bounds.held(degrees, unit.micro_batch, unit.schedules[0])
        every, stages = lower_bounds.pass_options(degrees, unit.micro_batch), lower_bounds.stages(degrees)
        fitting = [option for option in every if activation_bytes(option.memory, stages, held) <= room]
        if len(fitting) < len(every):
            self.rejected[UNFIT] += (len(every) - len(fitting)) * self._size(degrees, unit.schedules)
        if not fitting:
            return None
        least = {option.pass_config.sequence_parallel: option.pass_config for option in reversed(fitting)}
        bounds = (lower_bounds.pass_bound(degrees, pass_config) for pass_config in least.values())
        bound = min(bound.step_time_s(unit.schedules[-1]) for bound in bounds)
        return unit._replace(bound_s=max(bound, unit.bound_s), pass_options=fitting)

    def _reject(self, broken: list[Problem]) -> None:
        self.rejected[broken[0].rule] += 1
        self.illegal.append(broken)

    def _open(self, unit: _Unit) -> None:
        """Queue the layouts of a unit that may fit and be among the best, each with its own bound."""
        place = 0
        for schedule in unit.schedules:
            held = self.lower_bounds.held(unit.degrees, unit.micro_batch, schedule)
            size, slower = self._size(unit.degrees, [schedule]), set()
            for option in unit.pass_options:  # by increasing recomputation, which takes longer
                sequence_parallel = option.pass_config.sequence_parallel
                if sequence_parallel in slower:
                    self.rejected[SLOWER] += size
                    place += size
                    continue
                bound = self.lower_bounds.pass_bound(unit.degrees, option.pass_config)
                if bound.step_time_s(schedule) * ROUNDING > self._threshold:
                    self.rejected[SLOWER] += size
                    slower.add(sequence_parallel)
                else:
                    room = self.room_bytes - self.lower_bounds.activation_bytes(unit.degrees, option, held)
                    self._line_up(unit, option.pass_config, schedule, bound, room_bytes=room, place=place)
                place += size

    def _line_up(
        self,
        unit: _Unit,
        pass_config: PassConfig,
        schedule: Schedule,
        bound: PassBound,
        *,
        room_bytes: float,
        place: int,
    ) -> None:
        """Queue the ZeRO stages and axis orders of one way to run a unit; `place` is that of the first."""
        degrees, lower_bounds = unit.degrees, self.lower_bounds
        sends = [
            (order, lower_bounds.sends_s(degrees, pass_config, schedule, order))
            for order in lower_bounds.orders(degrees)
        ]
        steps = [(order, sends_s, bound.step_time_s(schedule, sends_s=sends_s)) for order, sends_s in sends]
        for sharding, states in zip(self.space.shardings(degrees), lower_bounds.states(degrees), strict=True):
            if states > room_bytes:
                self.rejected[UNFIT] += len(steps)
                place += len(steps)
                continue
            for order, sends_s, seconds in steps:
                place += 1
                lower_s = seconds + lower_bounds.after_s(
                    degrees, bound, sharding=sharding, order=order, sends_s=sends_s
                )
                if lower_s * ROUNDING > self._threshold:
                    self.rejected[SLOWER] += 1
                    continue
                leaf = _Leaf(lower_s, unit.number, place, degrees, pass_config, schedule, sharding, order)
                heappush(self.leaves, leaf)

    def _judge(self, leaf: _Leaf) -> None:
        layout = self.space.layout(
            leaf.degrees, leaf.pass_config, leaf.schedule, sharding=leaf.sharding, axis_order=leaf.axis_order
        )
        if refused := self.space.refused(layout):
            self._refuse(leaf, layout, refused)
            return
        memory = self.model.memory(layout)
        if not memory.fits or memory.total_bytes > self.room_bytes:
            self.rejected[UNFIT] += 1
            return
        estimate, memory_bytes = self.model.estimate(layout), memory.total_bytes
        usable = self.model.usable_bytes
        worse = handicap(self.job, layout, memory_bytes=memory_bytes, usable_bytes=usable)
        candidate = Candidate(layout, estimate)
        ranked = _Ranked(estimate.step_time_s * (1 + worse), memory_bytes, leaf.number, leaf.place, candidate)
        if len(self.ranked) == self.top and ranked[:4] > self.ranked[-1][:4]:
            self.rejected[SLOWER] += 1
        elif broken := self.space.broken(layout):
            self._reject(broken)
        else:
            self._rank(ranked)

    def _refuse(self, leaf: _Leaf, layout: Layout, why: list[Problem]) -> None:
        """Reject a layout; remember the fastest that only our software refuses and that beats the best."""
        self._reject(why)
        fastest = self.ranked[0].candidate.estimate.step_time_s if self.ranked else float("inf")
        if self.refused:
            fastest = min(fastest, self.refused.candidate.estimate.step_time_s)
        if leaf.bound_s >= fastest or problems(self.job, layout):
            return
        estimate = self.model.estimate(layout)
        if estimate.fits and estimate.step_time_s < fastest:
            self.refused = Refused(Candidate(layout, estimate), why[0].message)

    def _rank(self, place: _Ranked) -> None:
        key = _without_order(place)
        twin = self.orders.get(key)
        if twin is not None:
            self.rejected[OTHER_ORDER] += 1
            if twin[:4] < place[:4]:
                return
            self.ranked.remove(twin)
        self.orders[key] = place
        insort(self.ranked, place, key=lambda ranked: ranked[:4])
        if len(self.ranked) > self.top:
            del self.orders[_without_order(self.ranked.pop())]
            self.rejected[SLOWER] += 1

    def give_up(self) -> NoReturn:
        """Raise the reason why nothing was found."""
        nearest = least_memory(self.space, self.model)
        if nearest is None:
            raise InputError(refusal(self.space, self.illegal))
        needed = self.model.memory(nearest)
        if needed.fits and (limits := self._own_limits()):
            raise NoLayoutFits(
                f"no layout of {self.job.model.name} on {self.job.cluster.name} needs as little as {limits}: "
                f"{nearest.brief()} needs least, {format_bytes(needed.total_bytes)} of "
                f"{format_bytes(needed.usable_bytes)} usable on each GPU; allow it more"
            )
        raise NoLayoutFits(no_fit_message(self.space, self.model, nearest))

    def _own_limits(self) -> str:
        """The limits of memory that the user set."""
        margin, most = self.request.memory_margin, self.request.max_memory_gib
        limits = [f"layout.max_memory_gib={most:g}"] if most is not None else []
        return " and ".join([*limits, *([f"layout.memory_margin={margin:g}"] if margin else [])])


def _without_order(place: _Ranked) -> Layout:
    return replace(place.candidate.layout, axis_order="")
