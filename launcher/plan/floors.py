"""Lower bounds of the layouts of a space, and the layout that needs the least memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from launcher.cost import bounds
from launcher.cost.model import CostModel
from launcher.layout import Layout
from launcher.layout.degrees import DEFAULT_AXIS_ORDER
from launcher.layout.legality import Problem, broken_rules
from launcher.layout.resolve import default_schedule
from launcher.plan.space import Degrees, Passes, Space

ENGINE_RULE = "the engine cannot run it"
EP_CLOSE = "tp-dp-cp-pp"  # expert groups as close together as they get with tp first


class Floors:
    """Lower bounds of time and memory over a space; each part is worked out once for all layouts that share it."""

    def __init__(self, space: Space, model: CostModel) -> None:
        self.space, self.model = space, model
        self.batch = space.job.training.global_batch
        self._orders: dict[Degrees, tuple[str, ...]] = {}
        self._states: dict[Degrees, tuple[float, ...]] = {}
        self._stages: dict[tuple[int, int], bounds.Stages] = {}
        self._times: dict[tuple[object, ...], bounds.PassTime] = {}
        self._memories: dict[tuple[object, ...], bounds.PassMemory] = {}

    def broken_by_all(self, degrees: Degrees) -> list[Problem]:
        """Rules that every layout of these degrees breaks; what only the engine refuses may be legal otherwise."""
        request = self.space.request
        virtual = request.virtual_stages or 1
        plain = request.schedule if request.schedule != "interleaved" else None
        passes = Passes(
            request.micro_batch or 1,
            virtual,
            plain or default_schedule(virtual),
            request.recompute or "none",
            bool(request.sequence_parallel),
        )
        layout = self._layout(degrees, passes, request.zero_stage or 0, request.axis_order or DEFAULT_AXIS_ORDER)
        return [problem for problem in broken_rules(self.space.job, layout) if problem.rule != ENGINE_RULE]

    def interleaves(self, degrees: Degrees, passes: Passes) -> bool:
        """Whether the micro-batches divide for the virtual stages, where there are several."""
        return passes.virtual_stages == 1 or self.batch // (degrees.dp * passes.micro_batch) % degrees.pp == 0

    def orders(self, degrees: Degrees) -> tuple[str, ...]:
        found = self._orders.get(degrees)
        if found is None:
            found = self._orders[degrees] = tuple(self.space.axis_orders(degrees))
        return found

    def leaves(self, degrees: Degrees) -> int:
        """Layouts of one core: ZeRO stages × axis orders."""
        return len(self.space.zero_stages(degrees)) * len(self.orders(degrees))

    def states(self, degrees: Degrees) -> tuple[float, ...]:
        """Bytes of parameters, gradients and optimizer states, by ZeRO stage."""
        found = self._states.get(degrees)
        if found is None:
            passes = Passes(1, 1, "1f1b", "none", False)
            layouts = (self._layout(degrees, passes, zero) for zero in self.space.zero_stages(degrees))
            found = tuple(bounds.state_bytes_of_first_rank(self.model, layout) for layout in layouts)
            self._states[degrees] = found
        return found

    def activations(self, degrees: Degrees, passes: Passes) -> float:
        """Bytes of activations, at least."""
        tp, cp, _, _, ep = degrees
        key = (tp, cp, ep, passes.micro_batch, passes.recompute, passes.sequence_parallel)
        memory = self._memories.get(key)
        if memory is None:
            layout = self._layout(degrees, passes, 0)
            memory = self._memories[key] = bounds.pass_memory(self.model, layout)
        return bounds.activation_bytes(
            memory,
            self._stages_of(degrees, passes),
            schedule=passes.schedule,
            virtual_stages=passes.virtual_stages,
            num_micro_batches=self.batch // (degrees.dp * passes.micro_batch),
        )

    def step_time(self, degrees: Degrees, passes: Passes) -> float:
        """Seconds of a step, at least: with the axis order that suits its layers best."""
        stages = self._stages_of(degrees, passes)
        count = self.batch // (degrees.dp * passes.micro_batch)
        return min(
            bounds.step_time_s(
                self._time(degrees, passes, order),
                stages,
                schedule=passes.schedule,
                virtual_stages=passes.virtual_stages,
                num_micro_batches=count,
            )
            for order in self._best_orders(degrees)
        )

    def _best_orders(self, degrees: Degrees) -> Sequence[str]:
        """Axis orders of which one gives every layer collective its best group.

        A group gets no closer by moving other axes before its own: with tp first, cp is best second, and ep is where dp
        is second. Where tp need not be first, every order is tried.
        """
        if self.space.request.axis_order is not None or self.space.request.tp_across_domains:
            return self.orders(degrees)
        if degrees.cp > 1 and degrees.ep > 1:
            return (DEFAULT_AXIS_ORDER, EP_CLOSE)
        return (DEFAULT_AXIS_ORDER,)

    def _time(self, degrees: Degrees, passes: Passes, order: str) -> bounds.PassTime:
        tp, cp, pp, dp, ep = degrees
        shape = (tp, cp, ep, passes.micro_batch, passes.recompute, passes.sequence_parallel)
        key = shape if order == DEFAULT_AXIS_ORDER and ep == 1 else (*shape, order, pp, dp)
        found = self._times.get(key)
        if found is None:
            layout = self._layout(degrees, passes, 0, order)
            found = self._times[key] = bounds.pass_time(self.model, layout)
        return found

    def _stages_of(self, degrees: Degrees, passes: Passes) -> bounds.Stages:
        key = (degrees.pp, passes.virtual_stages)
        found = self._stages.get(key)
        if found is None:
            found = self._stages[key] = bounds.stages_of(self.model, self._layout(degrees, passes, 0))
        return found

    def _layout(self, degrees: Degrees, passes: Passes, zero_stage: int, order: str = DEFAULT_AXIS_ORDER) -> Layout:
        return self.space.layout(degrees, passes, zero_stage=zero_stage, axis_order=order)


def least_memory(space: Space, model: CostModel) -> Layout | None:
    """The legal layout that needs the least memory, whether or not it fits; None where none is legal."""
    floors = Floors(space, model)
    bounded = sorted(_by_memory(space, floors))
    best: tuple[float, Layout] | None = None
    for floor, degrees, passes in bounded:
        if best and floor >= best[0]:
            break
        for zero_stage in space.zero_stages(degrees):
            layout = space.layout(degrees, passes, zero_stage=zero_stage, axis_order=floors.orders(degrees)[0])
            used = model.memory(layout).total_bytes
            if (best is None or used < best[0]) and not broken_rules(space.job, layout):
                best = used, layout
    return best[1] if best else None


def _by_memory(space: Space, floors: Floors) -> Iterator[tuple[float, Degrees, Passes]]:
    for degrees in space.degrees():
        if floors.broken_by_all(degrees):
            continue
        states = min(floors.states(degrees))
        for passes in space.passes(degrees):
            if floors.interleaves(degrees, passes):
                yield states + floors.activations(degrees, passes), degrees, passes
