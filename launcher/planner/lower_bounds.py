"""Lower bounds for the layouts of a space, and the layout that needs the least memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import inf
from typing import Any, NamedTuple

from launcher.cost import bounds
from launcher.cost.layer import LayerShape
from launcher.cost.memo import once
from launcher.cost.model import CostModel
from launcher.cost.network import Group
from launcher.layout import Layout
from launcher.layout.degrees import DEFAULT_AXIS_ORDER, RECOMPUTE_MODES, SCHEDULES
from launcher.layout.legality import ENGINE_RULE, Problem
from launcher.layout.resolve import default_schedule
from launcher.planner.space import (
    RANKS,
    ZERO_BUBBLE,
    Degrees,
    PassConfig,
    Schedule,
    Sharding,
    Space,
)

ONE_PASS = PassConfig(1, "none", False)
UNSHARDED = Sharding(0)


class PassOption(NamedTuple):
    """One way to run a micro-batch, with a lower bound of its memory."""

    pass_config: PassConfig
    memory: bounds.PassMemory


class PassBound(NamedTuple):
    """Bounds shared by layouts of the same degrees and pass; `busiest_s`: the busiest rank's time per micro-batch."""

    busiest_s: float
    time: bounds.PassTime
    stages: bounds.Stages
    num_micro_batches: int
    unbounded: bool = False  # on shared cores

    def step_time_s(self, schedule: Schedule, *, sends_s: float = 0.0) -> float:
        if self.unbounded:
            return 0.0
        return bounds.step_time_s(
            self.time,
            self.stages,
            busiest=self.busiest_s,
            schedule=schedule.name,
            virtual_stages=schedule.virtual_stages,
            num_micro_batches=self.num_micro_batches,
            sends_s=sends_s,
        )


class LowerBounds:
    """Lower bounds of time and memory over a space; each part is computed once for all layouts that share it."""

    def __init__(self, space: Space, model: CostModel, *, any_host: bool = False) -> None:
        self.space, self.model, self.any_host = space, model, any_host
        self.batch = space.job.training.global_batch
        self._numbers: dict[tuple[Group, ...], int] = {}

    def broken_by_all(self, degrees: Degrees) -> list[Problem]:
        """Return the rules that every layout of these degrees breaks.

        An engine's rule counts if its message stays the same when the layout is varied one key at a time: such a rule
        concerns the degrees, the model or the training, not how the layout is run.
        """
        variations = self._variations(degrees)
        plain = next(variations)
        structural = [problem for problem in self.space.broken(plain) if problem.rule != ENGINE_RULE]
        always = self.space.refused(plain)
        while always and (layout := next(variations, None)) is not None:
            refused = set(self.space.refused(layout))
            always = [problem for problem in always if problem in refused]
        return structural + always

    def _variations(self, degrees: Degrees) -> Iterator[Layout]:
        """The mildest layout of these degrees, then every open key that an engine may mind, changed by itself; first
        the schedule, which is most often what an engine minds.
        """
        request = self.space.request
        virtual = request.virtual_stages or 1
        named = request.schedule if request.schedule != "interleaved" else None
        plainest = UNSHARDED._replace(offload=bool(request.offload_optimizer))
        plain = self.space.layout(
            degrees,
            PassConfig(request.micro_batch or 1, request.recompute or "none", bool(request.sequence_parallel)),
            Schedule(virtual, named or default_schedule(virtual)),
            sharding=self.space.shardings(degrees)[0] if request.zero_stage else plainest,
            axis_order=request.axis_order or DEFAULT_AXIS_ORDER,
        )
        yield plain
        changes: dict[str, tuple[Any, ...]] = {
            "schedule": SCHEDULES,
            "zero_stage": tuple(dict.fromkeys(each.zero_stage for each in self.space.shardings(degrees))),
            "recompute": RECOMPUTE_MODES,
            "sequence_parallel": (True, False),
            "micro_batch": (max(1, self.batch // degrees.dp),),
            "virtual_stages": (2,),
        }
        for key, values in changes.items():
            for value in values if getattr(request, key) is None else ():
                yield replace(plain, **{key: value})

    @once(lambda degrees: degrees[:RANKS])
    def orders(self, degrees: Degrees) -> tuple[str, ...]:
        return tuple(self.space.axis_orders(degrees))

    @once()
    def states(self, degrees: Degrees) -> tuple[float, ...]:
        """Return the bytes of parameters, gradients and optimizer states, by sharding; infinite where the host has no
        room for what is offloaded, unless `any_host`.
        """
        layouts = (self._layout(degrees, ONE_PASS, sharding=each) for each in self.space.shardings(degrees))
        return tuple(self._states(layout) for layout in layouts)

    def _states(self, layout: Layout) -> float:
        if not self.any_host and self.model.host_bytes(layout) > self.model.usable_host_bytes:
            return inf
        return bounds.state_bytes_of_first_rank(self.model, layout)

    def pass_bound(self, degrees: Degrees, pass_config: PassConfig) -> PassBound:
        """Return the time bound of one way to run a micro-batch; each part uses its best axis order."""
        stages = self.stages(degrees)
        times = [self._time(degrees, pass_config, groups, order) for groups, order in self._layer_orders(degrees)]
        time = times[0] if len(times) == 1 else bounds.least(times)
        return PassBound(
            bounds.busiest_s(time, stages),
            time,
            stages,
            self._count(degrees, pass_config.micro_batch),
            self.model.on_cpu,
        )

    def compute(self, degrees: Degrees, micro_batch: int) -> PassBound:
        """Return the time bound of compute alone, for any way to run a micro-batch: coarser, but faster to compute."""
        time = self._compute_time(micro_batch, degrees.tp, degrees.cp, degrees.ep)
        stages = self.stages(degrees)
        return PassBound(
            bounds.busiest_s(time, stages), time, stages, self._count(degrees, micro_batch), self.model.on_cpu
        )

    @once()
    def _compute_time(self, micro_batch: int, tp: int, cp: int, ep: int) -> bounds.PassTime:
        return bounds.compute_time(self.model, LayerShape(micro_batch, tp, cp, ep, sequence_parallel=False))

    def _count(self, degrees: Degrees, micro_batch: int) -> int:
        return self.batch // (degrees.dp * micro_batch)

    def held(self, degrees: Degrees, micro_batch: int, schedule: Schedule) -> float:
        """Return the largest number of micro-batches with activations on the first rank at the same time."""
        return bounds.held_by_first_rank(
            self.stages(degrees),
            schedule=schedule.name,
            virtual_stages=schedule.virtual_stages,
            num_micro_batches=self._count(degrees, micro_batch),
        )

    @once(lambda degrees, micro_batch: (degrees.tp, degrees.cp, degrees.ep, degrees.splits_backward, micro_batch))
    def pass_options(self, degrees: Degrees, micro_batch: int) -> list[PassOption]:
        """Return every way to run a micro-batch, with the memory that it needs."""
        pass_config = self.space.pass_configs(degrees, micro_batch)
        return [PassOption(each, bounds.pass_memory(self.model, self._layout(degrees, each))) for each in pass_config]

    def activation_bytes(self, degrees: Degrees, option: PassOption, held: float) -> float:
        """Return a lower bound of the bytes of activations."""
        return bounds.activation_bytes(option.memory, self.stages(degrees), held)

    def sends_s(self, degrees: Degrees, pass_config: PassConfig, schedule: Schedule, order: str) -> float:
        """Return the seconds that a rank sends activations and gradients for a micro-batch."""
        return self._sends_s(degrees, pass_config, schedule, order) if degrees.pp > 1 else 0.0

    @once(lambda degrees, pass_config, schedule, order: (degrees, pass_config[0], pass_config[2], schedule, order))
    def _sends_s(self, degrees: Degrees, pass_config: PassConfig, schedule: Schedule, order: str) -> float:
        """The same however much of a micro-batch is computed again."""
        layout = self.space.layout(degrees, pass_config, schedule, sharding=UNSHARDED, axis_order=order)
        return 2 * self.model.send_s(layout)

    def after_s(self, degrees: Degrees, bound: PassBound, *, sharding: Sharding, order: str, sends_s: float) -> float:
        """Return the seconds after the last micro-batch: exposed gradients and weights, and the optimizer."""
        if bound.unbounded:
            return 0.0
        gradients, optimizer = self._after(degrees, sharding, order, bound.num_micro_batches)
        busiest = bound.busiest_s + sends_s
        return optimizer + bounds.exposed_gradients_s(
            gradients, zero_stage=sharding.zero_stage, busiest=busiest, count=bound.num_micro_batches
        )

    @once()
    def _after(
        self, degrees: Degrees, sharding: Sharding, order: str, num_micro_batches: int
    ) -> tuple[tuple[float, float], float]:
        pass_config = PassConfig(self.batch // (degrees.dp * num_micro_batches), "none", False)
        layout = self._layout(degrees, pass_config, sharding=sharding, order=order)
        return bounds.gradients_s(self.model, layout), self.model.optimizer_s(layout)

    @once(lambda degrees: degrees[:RANKS])
    def _layer_orders(self, degrees: Degrees) -> list[tuple[int, str]]:
        """Return axis orders that differ in the groups of a layer's collectives, with a number for those groups."""
        by_groups = {self.space.layer_groups(degrees, order): order for order in reversed(self.orders(degrees))}
        return [(self._numbers.setdefault(groups, len(self._numbers)), order) for groups, order in by_groups.items()]

    @once(lambda degrees, pass_config, groups, order: (groups, degrees.splits_backward, pass_config))
    def _time(self, degrees: Degrees, pass_config: PassConfig, groups: int, order: str) -> bounds.PassTime:
        return bounds.pass_time(self.model, self._layout(degrees, pass_config, order=order))

    @once(lambda degrees: (degrees.pp, degrees.short_ends))
    def stages(self, degrees: Degrees) -> bounds.Stages:
        """Layers of the ranks: the same for every schedule of a family."""
        return bounds.stages_of(self.model, self._layout(degrees, ONE_PASS))

    def _layout(
        self,
        degrees: Degrees,
        pass_config: PassConfig,
        *,
        sharding: Sharding = UNSHARDED,
        order: str = DEFAULT_AXIS_ORDER,
    ) -> Layout:
        virtual = degrees.short_ends or self.space.request.virtual_stages or 1
        schedule = Schedule(virtual, ZERO_BUBBLE if degrees.splits_backward else "1f1b")
        return self.space.layout(degrees, pass_config, schedule, sharding=sharding, axis_order=order)


def least_memory(space: Space, model: CostModel, *, most_bytes: float = inf) -> Layout | None:
    """Return the legal layout with the least memory; None if none is legal, or all need more than `most_bytes`.

    One that the host has no room for is returned only where no other keeps what is pinned.
    """
    found = _least(space, LowerBounds(space, model), most_bytes)
    if found is not None or not space.request.offload_optimizer:
        return found
    return _least(space, LowerBounds(space, model, any_host=True), most_bytes)


def _least(space: Space, lower_bounds: LowerBounds, most_bytes: float) -> Layout | None:
    model = lower_bounds.model
    best: tuple[float, Layout] | None = None
    for bound, degrees, pass_config, schedule in sorted(_by_memory(space, lower_bounds)):
        if bound > most_bytes or bound == inf or (best and bound >= best[0]):
            break
        for sharding, states in zip(space.shardings(degrees), lower_bounds.states(degrees), strict=True):
            if states == inf:
                continue
            order = lower_bounds.orders(degrees)[0]
            layout = space.layout(degrees, pass_config, schedule, sharding=sharding, axis_order=order)
            used = model.memory(layout).total_bytes
            if (best is None or used < best[0]) and not space.broken(layout):
                best = used, layout
    return best[1] if best and best[0] <= most_bytes else None


def _by_memory(space: Space, lower_bounds: LowerBounds) -> Iterator[tuple[float, Degrees, PassConfig, Schedule]]:
    legal = (degrees for degrees in space.degrees() if not lower_bounds.broken_by_all(degrees))
    for degrees in (family for each in legal for family in space.families(each)):
        states = min(lower_bounds.states(degrees)) + lower_bounds.model.context_bytes
        for micro_batch in space.micro_batches(degrees):
            for schedule in space.schedules(degrees, micro_batch):
                held = lower_bounds.held(degrees, micro_batch, schedule)
                for option in lower_bounds.pass_options(degrees, micro_batch):
                    yield (
                        states + lower_bounds.activation_bytes(degrees, option, held),
                        degrees,
                        option.pass_config,
                        schedule,
                    )
