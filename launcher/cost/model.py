"""The cost model of a job: step time and memory of any of its layouts.

Pieces that many layouts share (a layer's time, a group's shape, a stage's parameters) are worked out once and kept in
the instance (`once`), so that a search over thousands of layouts stays fast.
"""

from __future__ import annotations

from math import inf
from operator import attrgetter

from launcher.cost.activations import LayerActivations, layer_activations
from launcher.cost.collectives import Prices
from launcher.cost.constants import DEFAULT, Constants
from launcher.cost.cores import CpuStepTime, around_layers_s, core_time, engine_of, layer_s
from launcher.cost.data_parallel import (
    Exposed,
    GradientSeconds,
    gradient_seconds,
    gradient_time,
    passed_share,
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
from launcher.cost.memo import once
from launcher.cost.memory import Memory, expert_shards, offloaded_bytes, stage_memory
from launcher.cost.network import AxisGroups, Group, fabric_of, groups_of
from launcher.cost.optimizer import optimizer_s, widening_s
from launcher.cost.parameters import RankParameters
from launcher.cost.pipeline import pipeline_time
from launcher.cost.ranks import PipelineRanks, pipeline_ranks
from launcher.cost.stage import Cost, blended, layer_cost, part_cost, spent
from launcher.cost.stage_times import BREAKDOWN, StageTimes, breakdown, stage_times
from launcher.cost.traffic import (
    LayerMessages,
    MessageRules,
    RankStage,
    embedding_messages,
    head_messages,
    layer_messages,
    received_messages,
    rules_of,
    send_message,
)
from launcher.layout import Layout
from launcher.layout.job import Job

# What a rank receives from a neighbour and what it sends there pass at once (Megatron-LM batches the two); DeepSpeed's
# pipeline does one after the other (runtime/pipe/schedule.py, TrainSchedule).
SENDS_IN_TURN = 2

# What nvidia-smi reports less what the driver keeps: torch sees 79.35 of 80 GiB on A100 80 GB and 39.59 of 40 on 40 GB.
DRIVER_FRACTION = 0.005
DRIVER_BYTES = 0.25 * 2**30
# Of a host's memory, what its ranks may fill with what they offload: the rest is the system's, the data loaders' and
# the processes' own. An assumption.
HOST_SHARE = 0.85


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
        self.usable_host_bytes = HOST_SHARE * node.host_memory_bytes if node.host_memory_bytes else inf
        self.context_bytes = constants.context_bytes if gpu.kind == "cuda" else 0.0
        self._prices = Prices(self.fabric)
        self.on_cpu = gpu.kind == "cpu"

    def estimate(self, layout: Layout) -> Estimate:
        """Step time and memory of a legal layout."""
        if self.on_cpu:
            return self._on_cores(layout)
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
        time = breakdown(stages, num_micro_batches, pipeline.bubble_s, gradients, optimizer)
        flops, peak = self._flops(layout), self.device.peak_flops
        return estimate_of(self.job, layout, total, time, self.memory(layout), flops=flops, peak=peak)

    def core_seconds(self, layout: Layout) -> float:
        """Of all CPU ranks together, in a step."""
        found = self._core_time(layout)
        return sum(found.parts.values()) * found.cores

    def step_s(self, layout: Layout) -> float:
        """Seconds of a step on CPU ranks."""
        return self._core_time(layout).total_s

    def _on_cores(self, layout: Layout) -> Estimate:
        """Of CPU ranks, whose cores are shared."""
        found = self._core_time(layout)
        time = {**dict.fromkeys(BREAKDOWN, 0.0), **found.parts, "bubble": found.idle_s}
        flops, peak = self._flops(layout), self.device.peak_flops
        return estimate_of(self.job, layout, found.total_s, time, self.memory(layout), flops=flops, peak=peak)

    def _core_time(self, layout: Layout) -> CpuStepTime:
        engine = engine_of(self.job.cluster)
        shape = _shape(layout)
        elements = float(self._tokens(shape) * self.job.model.hidden)
        layer = layer_s(self._layer_parts(shape), engine, layout, elements=elements) + self._accumulation_s(layout)
        ends = [end.total_s - end.tp_s for end in self.end_costs(layout)]
        stages = []
        ranks = self._ranks(layout)
        for rank, (layers, dense) in enumerate(zip(ranks.layers, ranks.dense_layers, strict=True)):
            first, last = rank == 0, rank == layout.pp - 1
            own = layers * layer + first * ends[0] + last * ends[1]
            own += around_layers_s(engine, layout, first=first, last=last)
            stages.append((RankStage(layers, first, last, layout.virtual_stages, dense), own))
        return core_time(
            self.job,
            layout,
            stages=stages,
            price=self._prices.of(self._groups(layout)),
            rules=self._rules(layout),
            update_s=self.optimizer_s(layout) - self.constants.host_step_s,
        )

    @once(
        attrgetter(
            *("tp", "pp", "dp", "cp", "ep", "virtual_stages", "micro_batch", "zero_stage", "shard_group", "recompute"),
            *("recompute_fraction", "sequence_parallel", "schedule", "layer_split", "offload_optimizer"),
        )
    )
    def memory(self, layout: Layout) -> Memory:
        """Memory of the rank that needs most."""
        each = [(stage, self.stage_parts(layout, stage)) for stage in self._ranks(layout).fullest]
        totals = [sum(parts.values()) for _, parts in each]
        total = max(totals)
        stage, parts = each[totals.index(total)]
        return Memory(stage, parts, total, self.usable_bytes, self.host_bytes(layout), self.usable_host_bytes)

    def host_bytes(self, layout: Layout) -> float:
        """Bytes of a node's host for what its ranks offload; schedules of one family offload alike."""
        if not layout.offload_optimizer:
            return 0.0
        ranks = min(self.job.cluster.node.num_gpus, layout.world_size)
        return ranks * max(offloaded_bytes(self.job, layout, held) for held in self._ranks(layout).distinct)

    @once(attrgetter("axis_order", "tp", "pp", "dp", "cp", "ep", "shard_group"))
    def _groups(self, layout: Layout) -> AxisGroups:
        return groups_of(self.job.cluster, layout)

    def group(self, layout: Layout, axis: str) -> Group:
        """The shape of an axis' groups."""
        return self._groups(layout).of(axis)

    def rank_layers(self, layout: Layout) -> tuple[int, ...]:
        """Layers of each pipeline rank, over its virtual stages."""
        return self._ranks(layout).layers

    def parameters(self, layout: Layout) -> tuple[RankParameters, ...]:
        """Parameters of each pipeline rank."""
        return self._ranks(layout).parameters

    @once(attrgetter("tp", "pp", "ep", "virtual_stages", "layer_split"))
    def _ranks(self, layout: Layout) -> PipelineRanks:
        return pipeline_ranks(self.job, layout)

    def layer_cost(self, layout: Layout) -> Cost:
        """One layer and one micro-batch; the mean layer where only some are recomputed."""
        recomputed = self._layer_cost(layout, layout.recompute)
        if layout.recompute_fraction == 1 or layout.recompute == "none":
            return recomputed
        return blended(recomputed, self._layer_cost(layout, "none"), layout.recompute_fraction)

    def _layer_cost(self, layout: Layout, recompute: str) -> Cost:
        groups = self._groups(layout)
        return self._layer_cost_over(
            _shape(layout), groups.tp, groups.cp, groups.ep, layout.schedule, recompute, layout
        )

    @once(lambda *asked: asked[:-1])
    def _layer_cost_over(
        self, shape: LayerShape, tp: Group, cp: Group, ep: Group, schedule: str, recompute: str, layout: Layout
    ) -> Cost:
        """The last argument is any layout that the others describe."""
        rules = self._rules(layout)
        early = recompute == "full" and not rules.repeats_last
        return layer_cost(
            constants=self.constants,
            price=self._prices.of(self._groups(layout)),
            parts=self._layer_parts(shape),
            messages=layer_messages(self.job, layout, rules),
            recompute=recompute,
            hides_tp=self.job.stack.tp_overlap != "none",
            skipped_s=self._last_product_s(self._tokens(shape), shape.tp) if early else 0.0,
        )

    @once(attrgetter("recompute", "schedule"))
    def _rules(self, layout: Layout) -> MessageRules:
        return rules_of(self.job, layout)

    def _tokens(self, shape: LayerShape) -> int:
        return shape.sequences * self.job.model.seq_len // shape.cp

    @once()
    def _last_product_s(self, tokens: int, tp: int) -> float:
        return last_product_s(self.device, self.job.model, tokens=tokens, tp=tp)

    @once()
    def _layer_parts(self, shape: LayerShape) -> LayerParts:
        tokenwise, core = self._shared_parts(shape)
        return layer_parts(self.device, self.job, shape, tokenwise=tokenwise, core=core)

    def _shared_parts(self, shape: LayerShape) -> tuple[Part, Part]:
        """The parts of a layer that other shapes have too."""
        return self._tokenwise(self._tokens(shape), shape.tp, shape.ep), self._core(shape.sequences, shape.tp, shape.cp)

    @once()
    def _tokenwise(self, tokens: int, tp: int, ep: int) -> Part:
        return tokenwise_part(self.device, self.job, tokens=tokens, tp=tp, ep=ep)

    @once()
    def _core(self, sequences: int, tp: int, cp: int) -> Part:
        return core_part(self.device, self.constants, self.job, sequences=sequences, tp=tp, cp=cp)

    def compute_s(self, shape: LayerShape) -> float:
        """Seconds that one layer and one micro-batch take at least, forward and backward: its products, or the host."""
        tokenwise, core = self._shared_parts(shape)
        forward = max(tokenwise.forward_s + core.forward_s, self.constants.host_forward_s)
        return forward + max(tokenwise.backward_s + core.backward_s, self.constants.host_backward_s)

    def end_costs(self, layout: Layout) -> tuple[Cost, Cost]:
        """Embedding and head of one micro-batch, each with its tensor-parallel collectives."""
        tokens = layout.micro_batch * self.job.model.seq_len // layout.cp
        return self._end_costs(tokens, layout.tp, self._groups(layout).tp, layout.sequence_parallel, layout)

    @once(lambda *asked: asked[:-1])
    def _end_costs(
        self, tokens: int, tp: int, group: Group, sequence_parallel: bool, layout: Layout
    ) -> tuple[Cost, Cost]:
        price = self._prices.of(self._groups(layout))

        def cost(part: Part, messages: LayerMessages) -> Cost:
            ahead, back, _ = (spent(price, self.constants, each).tp_s for each in messages)
            return part_cost(part, forward_collective_s=ahead, backward_collective_s=back)

        head = head_part(self.device, self.constants, self.job, tokens=tokens, tp=tp)
        embedding = embedding_part(self.device, self.job.model, tokens=tokens)
        first = embedding_messages(self.job, layout, self._rules(layout))
        return cost(embedding, first), cost(head, head_messages(self.job, layout))

    def _stage_times(self, layout: Layout) -> StageTimes:
        return stage_times(
            layer=self.layer_cost(layout),
            layers=self.rank_layers(layout),
            ends=self.end_costs(layout),
            sends_s=self.send_s(layout),
            accumulation_s=self._accumulation_s(layout),
            host_s=self.constants.host_micro_batch_s,
        )

    def _accumulation_s(self, layout: Layout) -> float:
        """Seconds a layer's gradients of a micro-batch take to be added to those before, or to be copied."""
        share = passed_share(self.job, layout)
        return share * self._one_accumulation_s(layout) if share else 0.0

    @once(lambda layout: (layout.tp, layout.ep, layout.pp == 1 and layout.sharding))
    def _one_accumulation_s(self, layout: Layout) -> float:
        return accumulation_s(self.device, self.job, layout)

    def send_s(self, layout: Layout) -> float:
        """Seconds to pass one micro-batch's activations on, for all virtual stages of a rank, one way.

        Tensor-parallel peers each send their share and gather it on the other side (Narayanan et al. 2021, section
        4.1).
        """
        if layout.pp == 1:
            return 0.0
        groups = self._groups(layout)
        one = self._one_send_s(groups.pp, groups.tp, _shape(layout), layout.schedule, layout)
        return layout.virtual_stages * one

    @once(lambda *asked: asked[:-1])
    def _one_send_s(self, pp: Group, tp: Group, shape: LayerShape, schedule: str, layout: Layout) -> float:
        price, rules = self._prices.of(self._groups(layout)), self._rules(layout)
        turns = SENDS_IN_TURN if self.job.stack.sends_in_turn else 1
        send = price(send_message(self.job, layout, rules))
        return turns * send + sum(map(price, received_messages(self.job, layout, rules)))

    def gradients(self, layout: Layout, *, forward_s: float, backward_s: float) -> Exposed:
        """Gradients and sharded weights of the rank with most parameters, and what other axes sum of them.

        They hide behind `forward_s` and `backward_s`, a rank's seconds for one micro-batch.
        """
        # Without a pipeline, ZeRO-3 reduces gradients as it gathers weights: overlapping with each micro-batch.
        stack = self.job.stack
        sharded = layout.sharding == 3 and layout.pp == 1
        if sharded and not stack.overlap_gathers:
            forward_s = backward_s = 0.0
        overlap = sharded or stack.overlaps_reduction(zero_stage=layout.sharding, pipeline=layout.pp > 1)
        return gradient_time(
            self._gradient_seconds(layout),
            forward_s=forward_s,
            backward_s=backward_s if overlap else 0.0,
            slowdown=self.constants.overlap_slowdown,
        )

    @once(
        attrgetter(
            *("axis_order", "tp", "pp", "dp", "cp", "ep", "shard_group", "virtual_stages", "layer_split"),
            *("sequence_parallel", "zero_stage", "micro_batch", "schedule", "recompute"),
        )
    )
    def _gradient_seconds(self, layout: Layout) -> GradientSeconds:
        groups, rules = self._groups(layout), self._rules(layout)
        price, local = self._prices.of(groups), self._prices.local_of(groups)
        return gradient_seconds(price, local, self.job, layout, self._ranks(layout), rules)

    def optimizer_s(self, layout: Layout) -> float:
        """Seconds of the optimizer's step on the rank with most to update."""
        shards, expert = (layout.shards, expert_shards(layout)) if layout.zero_stage else (1, 1)
        heaviest = max(p.dense / shards + p.experts / expert for p in self._ranks(layout).distinct)
        seconds = optimizer_s(
            self.device,
            self.constants,
            self.job.training,
            parameters=heaviest,
            pcie_bytes_per_s=self.job.cluster.node.gpu.pcie_bytes_per_s,
            ranks_per_node=self.job.cluster.node.num_gpus,
            offloaded=layout.offload_optimizer,
        )
        if self.job.stack.widens_sums and layout.dp * layout.cp > 1:
            seconds += widening_s(self.device, parameters=self._ranks(layout).heaviest.total)
        return seconds + self.constants.host_step_s

    @once(
        attrgetter(
            *("micro_batch", "tp", "cp", "ep", "sequence_parallel", "recompute", "recompute_fraction", "schedule")
        )
    )
    def activations(self, layout: Layout) -> LayerActivations:
        """Of one layer and one micro-batch."""
        # Our engine cannot gather again in a backward pass that is split.
        gathered = layout.schedule == "zb_h1" or not self.job.stack.gathers_again
        fraction = layout.recompute_fraction
        return layer_activations(self.job, _shape(layout), layout.recompute, fraction=fraction, gathered=gathered)

    def stage_parts(self, layout: Layout, stage: int) -> dict[str, float]:
        """Bytes of one rank of pipeline stage `stage` (of rank `stage`, with virtual stages), by part."""
        job = self.job
        return stage_memory(
            job=job,
            layout=layout,
            constants=self.constants,
            cuda=job.cluster.node.gpu.kind == "cuda",
            stage=stage,
            parameters=self.parameters(layout)[stage],
            layers=self.rank_layers(layout)[stage],
            activations=self.activations(layout),
            num_micro_batches=layout.num_micro_batches(job.training.global_batch),
        )

    @once(attrgetter("recompute", "recompute_fraction"))
    def _flops(self, layout: Layout) -> tuple[float, float]:
        """Model FLOPs of a step, and those that recomputation adds."""
        model, repeated = step_flops(self.job, layout.recompute, stops_early=self.job.stack.recompute_stops_early)
        return model, repeated * layout.recompute_fraction


def _shape(layout: Layout) -> LayerShape:
    return LayerShape(layout.micro_batch, layout.tp, layout.cp, layout.ep, layout.sequence_parallel)


def _schedule(layout: Layout) -> str:
    return "interleaved" if layout.virtual_stages > 1 else layout.schedule
