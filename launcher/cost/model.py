"""The cost model of a job: step time and memory of any of its layouts.

Pieces that many layouts share (a layer's time, a group's shape, a stage's parameters) are worked out once and kept in
the instance, so that a search over thousands of layouts stays fast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from launcher.cost.activations import LayerActivations, layer_activations
from launcher.cost.collectives import Prices
from launcher.cost.constants import DEFAULT, Constants
from launcher.cost.data_parallel import (
    Exposed,
    GradientSeconds,
    gradient_seconds,
    gradient_time,
    passed_share,
    reduces_every_pass,
)
from launcher.cost.device import device_of, host_constants
from launcher.cost.embedding_head import embedding_part, head_part
from launcher.cost.estimate import Estimate, estimate_of, step_flops
from launcher.cost.layer import (
    LayerParts,
    LayerShape,
    Part,
    accumulation_s,
    core_part,
    last_product_s,
    layer_parts,
    tokenwise_part,
)
from launcher.cost.memory import Memory, stage_memory
from launcher.cost.network import AxisGroups, fabric_of, groups_of
from launcher.cost.optimizer import optimizer_s
from launcher.cost.parameters import RankParameters
from launcher.cost.pipeline import pipeline_time
from launcher.cost.ranks import PipelineRanks, pipeline_ranks
from launcher.cost.stage import Cost, layer_cost, part_cost, spent
from launcher.cost.traffic import (
    LayerMessages,
    embedding_messages,
    head_messages,
    layer_messages,
    received_messages,
    rules_of,
    send_message,
)
from launcher.layout import Layout
from launcher.layout.job import Job
from launcher.stacks import habits as stack

_T = TypeVar("_T")

# What a rank receives from a neighbour and what it sends there pass at once (Megatron-LM batches the two); DeepSpeed's
# pipeline does one after the other (runtime/pipe/schedule.py, TrainSchedule).
SENDS_IN_TURN = 2

# What nvidia-smi reports less what the driver keeps: torch sees 79.35 of 80 GiB on A100 80 GB and 39.59 of 40 on 40 GB.
DRIVER_FRACTION = 0.005
DRIVER_BYTES = 0.25 * 2**30


@dataclass(frozen=True)
class StageTimes:
    """One rank's seconds for one micro-batch, stage by stage of the pipeline, with the parts that are communication."""

    forward_s: tuple[float, ...]
    backward_s: tuple[float, ...]
    weight_s: tuple[float, ...]
    worst: int
    layers: tuple[int, ...]
    layer: Cost
    ends: Cost  # what the worst rank does besides layers
    pp_s: float


class CostModel:
    """Estimates of one job's layouts."""

    def __init__(self, job: Job, constants: Constants = DEFAULT) -> None:
        self.job = job
        node, gpu = job.cluster.node, job.cluster.node.gpu
        self.constants = constants = host_constants(node, constants)
        self.device = device_of(node, job.training, constants)
        self.fabric = fabric_of(job.cluster, constants)
        kept = DRIVER_FRACTION * gpu.memory_bytes + DRIVER_BYTES if gpu.kind == "cuda" else 0.0
        self.usable_bytes = gpu.memory_bytes - kept
        self.context_bytes = constants.context_bytes if gpu.kind == "cuda" else 0.0
        self._kept: dict[tuple[Any, ...], Any] = {}
        self._prices = Prices(self.fabric)

    def estimate(self, layout: Layout) -> Estimate:
        """Step time and memory of a legal layout."""
        stages = self._stage_times(layout)
        num_micro_batches = layout.num_micro_batches(self.job.training.global_batch)
        pipeline = pipeline_time(
            _schedule(layout),
            forward_s=stages.forward_s,
            backward_s=stages.backward_s,
            weight_s=stages.weight_s,
            num_micro_batches=num_micro_batches,
            virtual_stages=layout.virtual_stages,
        )
        window = {"forward_s": stages.forward_s[stages.worst], "backward_s": stages.backward_s[stages.worst]}
        gradients = self.gradients(layout, **window)
        optimizer = self.optimizer_s(layout)
        total = pipeline.total_s + gradients.exposed_s + optimizer
        time = self._breakdown(stages, num_micro_batches, pipeline.bubble_s, gradients, optimizer)
        flops, peak = self._flops(layout), self.device.peak_flops
        return estimate_of(self.job, layout, total, time, self.memory(layout), flops=flops, peak=peak)

    def memory(self, layout: Layout) -> Memory:
        """Memory of the rank that needs most."""
        key = (
            "memory",
            layout.tp,
            layout.pp,
            layout.dp,
            layout.cp,
            layout.ep,
            layout.virtual_stages,
            layout.micro_batch,
            layout.zero_stage,
            layout.recompute,
            layout.sequence_parallel,
            layout.schedule,
            layout.layer_split,
        )
        return self._once(key, lambda: self._memory(layout))

    def _once(self, key: tuple[Any, ...], make: Callable[[], _T]) -> _T:
        found: _T | None = self._kept.get(key)
        if found is None:
            found = self._kept[key] = make()
        return found

    def _groups(self, layout: Layout) -> AxisGroups:
        return self._once(("groups", *_degrees(layout)), lambda: groups_of(self.job.cluster, layout))

    def rank_layers(self, layout: Layout) -> tuple[int, ...]:
        """Layers of each pipeline rank, over its virtual stages."""
        return self._ranks(layout).layers

    def parameters(self, layout: Layout) -> tuple[RankParameters, ...]:
        """Parameters of each pipeline rank."""
        return self._ranks(layout).parameters

    def _ranks(self, layout: Layout) -> PipelineRanks:
        key = ("ranks", layout.tp, layout.pp, layout.ep, layout.virtual_stages, layout.layer_split)
        return self._once(key, lambda: pipeline_ranks(self.job.model, layout))

    def layer_cost(self, layout: Layout, *, stops_early: bool | None = None) -> Cost:
        """One layer and one micro-batch; `stops_early`: not the layout's own way to recompute."""
        job, shape = self.job, _shape(layout)
        groups, rules = self._groups(layout), rules_of(job, layout)
        hides_tp = stack.async_tensor_parallel(job.training, layout)
        if stops_early is not None:
            rules = rules._replace(repeats_last=not stops_early)
        early = layout.recompute == "full" and not rules.repeats_last
        return self._once(
            ("layer", shape, groups.tp, groups.cp, groups.ep, layout.recompute, early, hides_tp),
            lambda: layer_cost(
                constants=self.constants,
                price=self._prices.of(groups),
                parts=self._layer_parts(shape),
                messages=layer_messages(job, layout, rules),
                recompute=layout.recompute,
                hides_tp=hides_tp,
                skipped_s=self._last_product_s(shape) if early else 0.0,
            ),
        )

    def _last_product_s(self, shape: LayerShape) -> float:
        tokens = shape.sequences * self.job.model.seq_len // shape.cp
        key = ("last product", tokens, shape.tp)
        return self._once(key, lambda: last_product_s(self.device, self.job.model, tokens=tokens, tp=shape.tp))

    def _layer_parts(self, shape: LayerShape) -> LayerParts:
        def make() -> LayerParts:
            tokenwise, core = self._shared_parts(shape)
            return layer_parts(self.device, self.job.model, self.job.training, shape, tokenwise=tokenwise, core=core)

        return self._once(("parts", shape), make)

    def _shared_parts(self, shape: LayerShape) -> tuple[Part, Part]:
        """The parts of a layer that other shapes have too."""
        device, model, training = self.device, self.job.model, self.job.training
        tokens, tp, ep = shape.sequences * model.seq_len // shape.cp, shape.tp, shape.ep
        tokenwise = self._once(
            ("tokenwise", tokens, tp, ep),
            lambda: tokenwise_part(device, model, training, tokens=tokens, tp=tp, ep=ep),
        )
        core = self._once(
            ("core", shape.sequences, tp, shape.cp),
            lambda: core_part(device, self.constants, model, training, shape),
        )
        return tokenwise, core

    def compute_s(self, shape: LayerShape) -> float:
        """Seconds that one layer and one micro-batch take at least, forward and backward: its products, or the host."""
        tokenwise, core = self._shared_parts(shape)
        forward = max(tokenwise.forward_s + core.forward_s, self.constants.host_forward_s)
        return forward + max(tokenwise.backward_s + core.backward_s, self.constants.host_backward_s)

    def end_costs(self, layout: Layout) -> tuple[Cost, Cost]:
        """Embedding and head of one micro-batch, each with its tensor-parallel collective."""
        model, groups = self.job.model, self._groups(layout)
        price = self._prices.of(groups)
        tokens = layout.micro_batch * model.seq_len // layout.cp

        def cost(part: Part, messages: LayerMessages) -> Cost:
            ahead, back, _ = (spent(price, self.constants, each).tp_s for each in messages)
            return part_cost(part, forward_collective_s=ahead, backward_collective_s=back)

        def make() -> tuple[Cost, Cost]:
            head = head_part(self.device, self.constants, model, tokens=tokens, tp=layout.tp)
            embedding = embedding_part(self.device, model, tokens=tokens)
            first = embedding_messages(self.job, layout, rules_of(self.job, layout))
            return cost(embedding, first), cost(head, head_messages(self.job, layout))

        return self._once(("ends", tokens, layout.tp, groups.tp, layout.sequence_parallel), make)

    def _stage_times(self, layout: Layout) -> StageTimes:
        layer, layers = self.layer_cost(layout), self.rank_layers(layout)
        embedding, head = self.end_costs(layout)
        sends = self.send_s(layout)
        host = self.constants.host_micro_batch_s
        forward = [count * layer.forward_s + sends + host for count in layers]
        per_layer = layer.backward_s + self._accumulation_s(layout)
        backward = [count * per_layer + sends for count in layers]
        weight = [count * layer.weight_s for count in layers]
        forward[0] += embedding.forward_s
        backward[0] += embedding.backward_s
        forward[-1] += head.forward_s
        backward[-1] += head.backward_s
        weight[-1] += head.weight_s
        busy = [f + b for f, b in zip(forward, backward, strict=True)]
        worst = busy.index(max(busy))
        ends = Cost(
            (worst == 0) * embedding.forward_s + (worst == layout.pp - 1) * head.forward_s + host,
            (worst == 0) * embedding.backward_s + (worst == layout.pp - 1) * head.backward_s,
            tp_s=(worst == 0) * embedding.tp_s + (worst == layout.pp - 1) * head.tp_s,
        )
        return StageTimes(tuple(forward), tuple(backward), tuple(weight), worst, layers, layer, ends, 2 * sends)

    def _accumulation_s(self, layout: Layout) -> float:
        """Seconds a layer's gradients of a micro-batch take to be added to those before, or to be copied."""
        model, training = self.job.model, self.job.training
        share = passed_share(model, training, layout)
        if not share:
            return 0.0
        dtype, copied = training.reduces_in(model, layout.sharding), reduces_every_pass(layout)
        key = ("accumulation", layout.tp, layout.ep, dtype, copied)
        return share * self._once(key, lambda: accumulation_s(self.device, model, training, layout))

    def send_s(self, layout: Layout) -> float:
        """Seconds to pass one micro-batch's activations on, for all virtual stages of a rank, one way.

        Tensor-parallel peers each send their share and gather it on the other side (Narayanan et al. 2021, section
        4.1).
        """
        if layout.pp == 1:
            return 0.0
        groups = self._groups(layout)
        price = self._prices.of(groups)
        turns = SENDS_IN_TURN if stack.runs_deepspeed(self.job.training, layout) else 1

        def make() -> float:
            rules = rules_of(self.job, layout)
            send = price(send_message(self.job, layout, rules))
            gather = sum(map(price, received_messages(self.job, layout, rules)))
            return layout.virtual_stages * (turns * send + gather)

        shape = (layout.micro_batch, layout.cp, layout.virtual_stages, layout.sequence_parallel)
        key = ("send", groups.pp, groups.tp, *shape, turns)
        return self._once(key, make)

    def gradients(self, layout: Layout, *, forward_s: float, backward_s: float) -> Exposed:
        """Gradients and sharded weights of the rank with most parameters, and what other axes sum of them.

        They hide behind `forward_s` and `backward_s`, a rank's seconds for one micro-batch.
        """
        # The gradients of ZeRO-3 without a pipeline are reduced as weights are gathered, beside each micro-batch.
        overlap = layout.sharding == 3 and layout.pp == 1
        overlap = overlap or stack.overlaps_grad_reduce(self.job.model, self.job.training, layout)
        network = self._groups(layout).replicas.nodes > 1
        slowdown = self.constants.network_overlap_slowdown if network else self.constants.overlap_slowdown
        return gradient_time(
            self._gradient_seconds(layout),
            forward_s=forward_s,
            backward_s=backward_s if overlap else 0.0,
            slowdown=slowdown,
        )

    def _gradient_seconds(self, layout: Layout) -> GradientSeconds:
        job, rules, groups = self.job, rules_of(self.job, layout), self._groups(layout)
        count = layout.num_micro_batches(job.training.global_batch)
        split = (layout.virtual_stages, layout.layer_split, layout.sequence_parallel, layout.zero_stage, count)
        return self._once(
            ("gradients", *_degrees(layout), *split, rules),
            lambda: gradient_seconds(self._prices.of(groups), job, layout, self._ranks(layout), rules),
        )

    def optimizer_s(self, layout: Layout) -> float:
        """Seconds of the optimizer's step on the rank with most to update."""
        shards = layout.dp * layout.cp if layout.zero_stage else 1
        heaviest = max(p.dense / shards + p.experts / max(1, shards // layout.ep) for p in self._ranks(layout).distinct)
        seconds = optimizer_s(
            self.device,
            self.constants,
            self.job.training,
            parameters=heaviest,
            pcie_bytes_per_s=self.job.cluster.node.gpu.pcie_bytes_per_s,
            ranks_per_node=self.job.cluster.node.num_gpus,
        )
        return seconds + self.constants.host_step_s

    def _breakdown(
        self, stages: StageTimes, num_micro_batches: int, bubble_s: float, gradients: Exposed, optimizer: float
    ) -> dict[str, float]:
        """Where the step's seconds go on the busiest rank; those that end in `_hidden` are behind compute, not in the
        sum.
        """
        layer, m = stages.layer, num_micro_batches
        count = stages.layers[stages.worst]
        busy = stages.forward_s[stages.worst] + stages.backward_s[stages.worst]
        tp = count * layer.tp_s + stages.ends.tp_s
        cp, ep = count * layer.cp_s, count * layer.ep_s
        return {
            "compute": m * (busy - tp - cp - ep - stages.pp_s),
            "tp_comm": m * tp,
            "cp_comm": m * cp,
            "ep_comm": m * ep,
            "pp_comm": m * stages.pp_s,
            "dp_comm": gradients.exposed_s,
            "bubble": bubble_s,
            "optimizer": optimizer,
            "tp_comm_hidden": m * count * layer.tp_hidden_s,
            "dp_comm_hidden": gradients.hidden_s,
        }

    def activations(self, layout: Layout) -> LayerActivations:
        """Of one layer and one micro-batch."""
        job, shape = self.job, _shape(layout)
        gathered = layout.schedule == "zb_h1"  # the engine cannot gather again in a backward pass that is split
        return self._once(
            ("activations", shape, layout.recompute, gathered),
            lambda: layer_activations(job.model, job.training, shape, layout.recompute, gathered=gathered),
        )

    def stage_parts(self, layout: Layout, stage: int) -> dict[str, float]:
        """Bytes of one rank of pipeline stage `stage` (of rank `stage`, with virtual stages), by part."""
        job = self.job
        return stage_memory(
            model=job.model,
            training=job.training,
            layout=layout,
            constants=self.constants,
            cuda=job.cluster.node.gpu.kind == "cuda",
            stage=stage,
            parameters=self.parameters(layout)[stage],
            layers=self.rank_layers(layout)[stage],
            activations=self.activations(layout),
            num_micro_batches=layout.num_micro_batches(job.training.global_batch),
        )

    def _memory(self, layout: Layout) -> Memory:
        each = [(stage, self.stage_parts(layout, stage)) for stage in self._ranks(layout).fullest]
        totals = [sum(parts.values()) for _, parts in each]
        total = max(totals)
        stage, parts = each[totals.index(total)]
        return Memory(stage, parts, total, self.usable_bytes)

    def _flops(self, layout: Layout) -> tuple[float, float]:
        """Model FLOPs of a step, and those that recomputation adds."""
        early = stack.stops_early(self.job.training, layout)
        key = ("flops", layout.recompute, early)
        return self._once(key, lambda: step_flops(self.job, layout.recompute, stops_early=early))


def _shape(layout: Layout) -> LayerShape:
    return LayerShape(layout.micro_batch, layout.tp, layout.cp, layout.ep, layout.sequence_parallel)


def _degrees(layout: Layout) -> tuple[str, int, int, int, int, int]:
    """What the groups of every axis depend on."""
    return layout.axis_order, layout.tp, layout.pp, layout.dp, layout.cp, layout.ep


def _schedule(layout: Layout) -> str:
    return "interleaved" if layout.virtual_stages > 1 else layout.schedule
