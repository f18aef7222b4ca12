"""The search space: every assignment of ranks to axes, and every way to run each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from math import gcd
from typing import NamedTuple, TypeVar

from launcher.cost.memo import once
from launcher.cost.network import Group, group_of
from launcher.layout.degrees import AXES, DEFAULT_AXIS_ORDER, Layout, LayoutRequest
from launcher.layout.engines import engine_problems
from launcher.layout.job import Job
from launcher.layout.legality import ENGINE_RULE, Problem, broken_rules, divisors, tensor_parallel_choices
from launcher.layout.resolve import default_schedule, resolved_shard_group
from launcher.layout.split import SHORT_ENDS, default_split, has_split, interleaves

ZERO_BUBBLE = "zb_h1"
RANKS = 5  # the fields of Degrees that share out the ranks
T = TypeVar("T")
Refuse = Callable[[Job, Layout], list[str]]


class Degrees(NamedTuple):
    """How the ranks are shared out among the axes, and which family of schedules the pipeline has.

    Schedules of a family differ in neither the layers of a rank nor the cost of a layer. `splits_backward`: weight
    gradients are passes of their own (zb_h1). `short_ends`: of a pipeline that interleaves with fewer layers at its
    ends, the virtual stages of a rank; 0: the layers are spread evenly.
    """

    tp: int
    cp: int
    pp: int
    dp: int
    ep: int
    splits_backward: bool = False
    short_ends: int = 0


class PassConfig(NamedTuple):
    """How one micro-batch is run."""

    micro_batch: int
    recompute: str
    sequence_parallel: bool
    recompute_fraction: float = 1.0


class Sharding(NamedTuple):
    """The ZeRO stage, over how many neighbours it shards (0: all), and whether the optimizer is on the host."""

    zero_stage: int
    shard_group: int = 0
    offload: bool = False


class Schedule(NamedTuple):
    """The order of micro-batches in the pipeline."""

    virtual_stages: int
    name: str


class Space:
    """All layouts of a job that keep what is pinned: degrees, passes, schedules, ZeRO stages, axis orders, nested.

    Choices that no legal layout can have (a tp that does not divide the heads, a micro batch that does not divide the
    batch) are not listed unless they are pinned; neither is an axis order that crosses the same links as one before it,
    what the job's stack does not have, gpipe where 1f1b takes as long in less memory, or a shard group across cp.
    `refuse` gives more reasons why a layout is out of the question: what the program that is to run it cannot do.
    """

    def __init__(self, job: Job, request: LayoutRequest, refuse: Refuse | None = None) -> None:
        self.job, self.request, self.refuse = job, request, refuse
        cluster = job.cluster
        tapered = max(cluster.oversubscription, cluster.core_oversubscription) > 1
        self._spine_is_slower = tapered or "spine" in cluster.node.busbw_bytes_per_s

    def broken(self, layout: Layout) -> list[Problem]:
        """Return every rule that a layout breaks."""
        structural = [problem for problem in broken_rules(self.job, layout) if problem.rule != ENGINE_RULE]
        return structural + self.refused(layout)

    def refused(self, layout: Layout) -> list[Problem]:
        """Return what the engine and the program that will run the layout cannot do."""
        messages = engine_problems(self.job, layout) + (self.refuse(self.job, layout) if self.refuse else [])
        return [Problem(ENGINE_RULE, message) for message in dict.fromkeys(messages)]

    def degrees(self) -> Iterator[Degrees]:
        """Yield every assignment of ranks to axes, in a fixed order; none if pinned degrees do not divide the world."""
        request, world = self.request, self.job.cluster.max_ranks
        for tp in _pinned_or(request.tp, self._tp_choices(world)):
            for cp in _pinned_or(request.cp, self._cp_choices(world // max(1, tp))):
                for pp in _pinned_or(request.pp, self._pp_choices(world // max(1, tp * cp))):
                    dp = request.dp or world // max(1, tp * cp * pp)
                    if tp * cp * pp * dp == world:
                        yield from (Degrees(tp, cp, pp, dp, ep) for ep in _pinned_or(request.ep, self._ep_choices(dp)))

    def _tp_choices(self, world: int) -> list[int]:
        allowed = tensor_parallel_choices(self.job, across_domains=self.request.tp_across_domains)
        return [tp for tp in allowed if world % tp == 0]

    def _cp_choices(self, ranks: int) -> list[int]:
        seq_len = self.job.model.seq_len
        if not self.job.stack.context_parallel:
            return [1]
        return [cp for cp in divisors(max(1, ranks)) if cp == 1 or seq_len % (2 * cp) == 0]

    def _pp_choices(self, ranks: int) -> list[int]:
        most = self.job.model.layers if self.job.stack.schedules or self.request.schedule else 1
        return [pp for pp in divisors(max(1, ranks)) if pp <= most]

    def _ep_choices(self, dp: int) -> list[int]:
        return divisors(gcd(dp, self.job.model.num_experts)) if self.job.model.num_experts else [1]

    def micro_batches(self, degrees: Degrees) -> Sequence[int]:
        """Return the sizes (in sequences) that divide a data-parallel rank's share of the batch."""
        share = max(1, self.job.training.global_batch // degrees.dp)
        return _pinned_or(self.request.micro_batch, divisors(share))

    def pass_configs(self, degrees: Degrees, micro_batch: int) -> tuple[PassConfig, ...]:
        """Return every way to run a micro-batch over these degrees, by increasing recomputation."""
        shards = degrees.tp > 1 and self.job.stack.sequence_parallel
        divides = shards and self.job.model.seq_len % (degrees.tp * degrees.cp) == 0
        return self._pass_configs(micro_batch, divides)

    @once()
    def _pass_configs(self, micro_batch: int, divides: bool) -> tuple[PassConfig, ...]:
        flags = _pinned_or(self.request.sequence_parallel, (True, False) if divides else (False,))
        modes = _pinned_or(self.request.recompute, self.job.stack.recompute_modes)
        return tuple(
            PassConfig(micro_batch, mode, flag, fraction)
            for mode in modes
            for fraction in self._fractions(mode)
            for flag in flags
        )

    def _fractions(self, mode: str) -> Sequence[float]:
        """Of the layers, how many are recomputed: of whole layers, the shares that the stack can be asked for too."""
        whole = (*self.job.stack.recompute_fractions, 1.0) if mode == "full" else (1.0,)
        return _pinned_or(self.request.recompute_fraction, whole)

    def families(self, degrees: Degrees) -> Iterator[Degrees]:
        """These degrees with every family of schedules that the stack has, or that is pinned."""
        request, pinned = self.request, self.request.schedule
        named = self.job.stack.schedules if pinned is None else (pinned,)
        yield degrees._replace(splits_backward=pinned == ZERO_BUBBLE)
        if degrees.pp == 1 or request.virtual_stages not in (None, 1):
            return
        # On a CPU several ranks share a core: another rank already works while one waits.
        if pinned is None and ZERO_BUBBLE in named and self.job.cluster.node.gpu.kind == "cuda":
            yield degrees._replace(splits_backward=True)
        if "interleaved" in named and request.virtual_stages is None and request.layer_split is None:
            yield from (degrees._replace(short_ends=virtual) for virtual in self._short_ends(degrees.pp))

    @once()
    def _short_ends(self, pp: int) -> tuple[int, ...]:
        """Virtual stages of a rank that leave the ends of the pipeline, and these alone, a layer less."""
        layers = self.job.model.layers
        places = layers + (SHORT_ENDS if self.job.stack.empty_ends else 0)
        every = range(2, places // pp + 1)
        return tuple(v for v in every if layers % (pp * v) and interleaves(layers, num_stages=pp * v))

    def schedules(self, degrees: Degrees, micro_batch: int) -> tuple[Schedule, ...]:
        """Schedules of a family by rising number of virtual stages: interleaved where layers and micro-batches divide.

        Empty where virtual stages are pinned, or those of a family, and the micro-batches do not divide for them.
        """
        count = self.job.training.global_batch // (degrees.dp * micro_batch)
        family = degrees.splits_backward, degrees.short_ends
        return self._schedules(degrees.pp, count % degrees.pp == 0, count < degrees.pp, family)

    @once()
    def _schedules(self, pp: int, even: bool, few: bool, family: tuple[bool, int]) -> tuple[Schedule, ...]:
        """`few`: there are fewer micro-batches than ranks of the pipeline, for which an engine may have gpipe alone."""
        (splits_backward, short_ends), request = family, self.request
        if short_ends:
            return (Schedule(short_ends, "interleaved"),) if even else ()
        if splits_backward:
            return (Schedule(request.virtual_stages or 1, ZERO_BUBBLE),)
        found = [Schedule(v, request.schedule or default_schedule(v)) for v in self._virtual_stages(pp, even)]
        gpipe = request.schedule is None and request.virtual_stages in (None, 1) and "gpipe" in self.job.stack.schedules
        return (*([Schedule(1, "gpipe")] if gpipe and few else []), *found)

    def _virtual_stages(self, pp: int, even: bool) -> list[int]:
        """Virtual stages of a rank, of an even pipeline."""
        pinned, layers = self.request.schedule, self.job.model.layers
        if self.request.virtual_stages is not None:
            return [self.request.virtual_stages] if even or self.request.virtual_stages == 1 else []
        named = self.job.stack.schedules if pinned is None else (pinned,)
        if pp == 1 or layers % pp or not even or "interleaved" not in named:
            return [1]
        virtual = divisors(layers // pp)
        return virtual[1:] or virtual if pinned == "interleaved" else virtual

    @once(lambda degrees: degrees[:RANKS])
    def shardings(self, degrees: Degrees) -> Sequence[Sharding]:
        """Every ZeRO stage, over the ranks that are asked for; else over all, and where the stack can over a node's;
        each with the optimizer on the host too, where that is asked for or may be tried.
        """
        here = () if self.request.offload_optimizer else self._placed(degrees, self._zero_stages(degrees))
        there = () if self.request.offload_optimizer is False else self._placed(degrees, self._offload_stages(degrees))
        return (*here, *(sharding._replace(offload=True) for sharding in there))

    def _placed(self, degrees: Degrees, stages: Sequence[int]) -> Sequence[Sharding]:
        """These ZeRO stages over the ranks that they may be sharded over."""
        if self.request.shard_group is not None:
            group = self._shard_group(degrees, self.request.shard_group)
            return tuple(Sharding(stage, group if stage else 0) for stage in stages)
        node = self._shard_group(degrees, "node") if degrees.cp == 1 else 0
        grouped = [stage for stage in stages if stage in self.job.stack.shard_group_stages] if node > 1 else []
        return (*(Sharding(stage) for stage in stages), *(Sharding(stage, node) for stage in grouped))

    def _shard_group(self, degrees: Degrees, asked: int | str) -> int:
        """A shard group as a number of ranks, 0 for all; a node's only where it divides them."""
        ranks = degrees.dp * degrees.cp
        group = resolved_shard_group(self.job, asked, tp=degrees.tp, ranks=ranks)
        return 0 if group and asked == "node" and self.request.shard_group is None and ranks % group else group

    def _zero_stages(self, degrees: Degrees) -> Sequence[int]:
        """Return the ZeRO stages to try. Over one rank there is nothing to shard, but an engine may refuse stage 0.

        No stack lists ZeRO-2 for a pipeline: it reduces its gradients once per step, as with ZeRO-1. A pipeline that is
        asked of software without one is estimated without ZeRO.
        """
        if self.request.zero_stage is not None:
            return (self.request.zero_stage,)
        if degrees.dp * degrees.cp > 1:
            return self.job.stack.zero_stages if degrees.pp == 1 else self.job.stack.pipeline_zero_stages or (0,)
        alone = Layout(
            tp=degrees.tp, pp=degrees.pp, dp=1, ep=degrees.ep, offload_optimizer=bool(self.request.offload_optimizer)
        )
        return (1,) if self.refused(alone) else (0,)

    def _offload_stages(self, degrees: Degrees) -> Sequence[int]:
        """The ZeRO stages to try with the optimizer on the host, those that the stack has for it.

        Unasked only where the host's memory, which limits it, is known, and no other jobs share it (slices do). What is
        asked of software that cannot do it is estimated. Over one rank all stages are alike.
        """
        node, asked = self.job.cluster.node, self.request.offload_optimizer
        able = self.job.stack.offload_stages
        if asked is None and (node.gpu.kind != "cuda" or node.is_mig or not node.host_memory_bytes):
            return ()
        if asked and (not able or self.request.zero_stage is not None):
            return self._zero_stages(degrees)
        if degrees.dp * degrees.cp == 1 and self.request.zero_stage is None:
            return able[:1]
        found = [stage for stage in self._zero_stages(degrees) if stage in able]
        return found or (self._zero_stages(degrees) if asked else ())

    def axis_orders(self, degrees: Degrees) -> Sequence[str]:
        """Return axis orders with groups that cross links of different rates, the usual order first.

        Axes of one rank do not matter. If tp must stay in its NVSwitch domain it comes first: an axis before it would
        have to fit into the domain together with it, and then it would cross the same links after tp.
        """
        if self.request.axis_order is not None:
            return (self.request.axis_order,)
        axes = tuple(axis for axis in AXES if getattr(degrees, axis) > 1)
        distinct: dict[tuple[Group, ...], str] = {}
        for order in _orders(axes, tp_first=not self.request.tp_across_domains):
            distinct.setdefault(self._crossings(degrees, axes, order), "-".join(order))
        return tuple(distinct.values())

    def layer_groups(self, degrees: Degrees, order: str) -> tuple[Group, ...]:
        """Return the groups of a layer's collectives: tp, cp and ep."""
        strides = _strides(degrees, order.split("-"))
        sizes = (("tp", degrees.tp), ("cp", degrees.cp), ("dp", degrees.ep))
        return tuple(self._group(strides[axis] if ranks > 1 else 1, ranks) for axis, ranks in sizes)

    def _crossings(self, degrees: Degrees, axes: tuple[str, ...], order: tuple[str, ...]) -> tuple[Group, ...]:
        strides = _strides(degrees, order)
        groups = tuple(self._group(strides[axis], getattr(degrees, axis)) for axis in axes)
        return groups if degrees.ep == 1 else (*groups, self._group(strides["dp"], degrees.ep))

    @once()
    def _group(self, stride: int, ranks: int) -> Group:
        """Return the group of `ranks` ranks `stride` apart."""
        rest = max(1, self.job.cluster.max_ranks // (stride * ranks))
        layout = Layout(tp=stride, pp=1, dp=ranks, cp=rest, axis_order="tp-dp-cp-pp")
        found = group_of(self.job.cluster, layout, "dp")
        return found if self._spine_is_slower else found._replace(spine=False, rails=1, core=False)

    def layout(
        self, degrees: Degrees, pass_config: PassConfig, schedule: Schedule, *, sharding: Sharding, axis_order: str
    ) -> Layout:
        """Return one layout of the space."""
        return Layout(
            tp=degrees.tp,
            pp=degrees.pp,
            dp=degrees.dp,
            cp=degrees.cp,
            ep=degrees.ep,
            virtual_stages=schedule.virtual_stages,
            micro_batch=pass_config.micro_batch,
            zero_stage=sharding.zero_stage,
            shard_group=sharding.shard_group,
            offload_optimizer=sharding.offload,
            recompute=pass_config.recompute,
            recompute_fraction=pass_config.recompute_fraction if pass_config.recompute != "none" else 1.0,
            sequence_parallel=pass_config.sequence_parallel,
            axis_order=axis_order,
            schedule=schedule.name,
            layer_split=self.layer_split(degrees.pp * schedule.virtual_stages, schedule.virtual_stages > 1),
            tp_across_domains=self.request.tp_across_domains,
        )

    @once()
    def layer_split(self, stages: int, virtual: bool) -> tuple[int, ...]:
        """Return the layers of each stage: as given, or as the software shares them out.

        Empty if there are too many stages.
        """
        if self.request.layer_split is not None:
            return self.request.layer_split
        shared_out = has_split(self.job, num_stages=stages, virtual=virtual)
        return default_split(self.job, num_stages=stages) if shared_out else ()


def _pinned_or(pinned: T | None, choices: Sequence[T]) -> Sequence[T]:
    return (pinned,) if pinned is not None else choices


def _strides(degrees: Degrees, order: Sequence[str]) -> dict[str, int]:
    strides, stride = {}, 1
    for axis in order:
        strides[axis] = stride
        stride *= getattr(degrees, axis)
    return strides


def _orders(axes: tuple[str, ...], *, tp_first: bool) -> tuple[tuple[str, ...], ...]:
    """Return every order of `axes`, followed by the axes of one rank; the usual order comes first."""
    rest = tuple(axis for axis in DEFAULT_AXIS_ORDER.split("-") if axis not in axes)
    head = ("tp",) if tp_first and "tp" in axes else ()
    tail = tuple(axis for axis in axes if axis not in head)
    return tuple(head + order + rest for order in permutations(tail))
