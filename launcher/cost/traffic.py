"""The collectives and sends of every rank in a step: the only place that counts the bytes that an axis moves.

The cost model prices these messages, the placement of nodes weighs links by them, and the truth tests compare them with
what real ranks send. Scalars (loss, gradient norm) are left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from launcher.cost.parameters import RankParameters, end_parameters, padded_vocab, stage_parameters
from launcher.layout import Layout
from launcher.layout.job import Job
from launcher.units import DTYPE_BYTES

# Passes of a ring over n ranks, which sends (n - 1)/n of the buffer (Thakur et al. 2005); an all-to-all sends that much
# of a rank's own buffer.
PASSES = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "all_to_all": 1}
SEND, SEND_BACK = "send", "send_back"  # to the next pipeline stage, and to the one before


class Message(NamedTuple):
    """A collective or a send that a rank takes part in, `times` times.

    `axis`: tp, cp, ep, pp, dp (the ranks of dp × cp, which have the same parameters), sdp and rdp (those that shard
    them, and those that hold the same shard, of shard groups) or edp (those with the same experts); `ranks` of its
    group take part. `num_bytes` counts as in nccl-tests: the whole buffer of an all-reduce, all-gather or
    reduce-scatter, a rank's own buffer of an all-to-all, the message of a send.
    """

    axis: str
    collective: str
    num_bytes: float
    ranks: int
    dtype: str
    times: float = 1.0

    @property
    def sent_bytes(self) -> float:
        """What each rank of the group sends, all times together."""
        if self.collective in (SEND, SEND_BACK):
            return self.times * self.num_bytes
        return self.times * PASSES[self.collective] * (self.ranks - 1) / self.ranks * self.num_bytes

    def repeated(self, factor: float) -> Message:
        axis, collective, num_bytes, ranks, dtype, times = self
        return Message(axis, collective, num_bytes, ranks, dtype, times * factor)


class LayerMessages(NamedTuple):
    """Of one layer (or one end of the model) and one micro-batch. `repeated`: by recomputing the whole layer."""

    forward: tuple[Message, ...]
    backward: tuple[Message, ...]
    repeated: tuple[Message, ...] = ()


class GradientMessages(NamedTuple):
    """Times of a step: overlapping with forward passes, with backward passes, and after them."""

    forward: tuple[Message, ...]
    backward: tuple[Message, ...]
    after: tuple[Message, ...]


class MessageRules(NamedTuple):
    """What of a training software decides which messages there are."""

    gathers_again: bool = True  # backward gathers again what a layer gathered under sequence parallelism
    gathers_keys_again: bool = True  # the same for keys and values under context parallelism
    repeats_last: bool = True  # recomputing a layer repeats its last collective too
    scatters_embedding: bool = True  # with sequence parallelism embeddings are reduced and cut in one
    whole_sends: bool = False  # pipeline stages exchange whole messages, not a part for each tensor-parallel rank
    gathers_ends_again: bool = True  # ZeRO-3 gathers embedding and head for backward too
    keeps_gathered: bool = False  # ZeRO-3 in a pipeline gathers once a step
    shards_tied_table: bool = False  # ZeRO shards a tied table before its two ranks sum its gradients
    joint_gate: bool = True  # gate and up projections share the collectives of their input


@dataclass(frozen=True)
class RankStage:
    """What a pipeline rank holds: layers, the embedding (first), the head (last); chunks are its virtual stages."""

    layers: int
    first: bool
    last: bool
    chunks: int = 1
    dense_layers: int = 0  # of its layers, those with an MLP in place of experts


def rules_of(job: Job, layout: Layout) -> MessageRules:
    """The rules by which estimates are made: those of our engine where it trains, else Megatron-LM's with the stack's
    own recomputation and gathers.
    """
    stack = job.stack
    if stack.name == "launcher" and job.training.engine == "torch":
        return engine_rules(job, layout)._replace(repeats_last=not stack.recompute_stops_early)
    return MessageRules(
        gathers_again=stack.gathers_again, repeats_last=not stack.recompute_stops_early, joint_gate=stack.joint_gate
    )


def engine_rules(job: Job, layout: Layout) -> MessageRules:
    """The rules of our torch engine, as the truth tests find them."""
    split = layout.schedule == "zb_h1"
    # `can_re_all_gather` in launcher/worker/parallel/parallelize.py: not over gloo.
    again = layout.recompute != "full" and not split and job.cluster.node.gpu.kind != "cpu"
    return MessageRules(
        gathers_again=again,
        gathers_keys_again=layout.recompute == "selective" or (again and layout.recompute == "none"),
        repeats_last=False,
        scatters_embedding=False,
        whole_sends=split,
        gathers_ends_again=False,
        keeps_gathered=split,
        shards_tied_table=True,
    )


def layer_messages(job: Job, layout: Layout, rules: MessageRules) -> LayerMessages:
    """Of one layer and one micro-batch, over tp, cp and ep."""
    tensor = _tensor_parallel(job, layout, rules)
    if layout.cp == layout.ep == 1:
        return tensor
    context = _context_parallel(job, layout, rules)
    expert = _expert_parallel(job, layout)
    return LayerMessages(*(a + b + c for a, b, c in zip(tensor, context, expert, strict=True)))


def _tensor_parallel(job: Job, layout: Layout, rules: MessageRules) -> LayerMessages:
    """Two all-reduces each way (Shoeybi et al. 2019); with sequence parallelism an all-gather and a reduce-scatter for
    each, and where a rank keeps only its part of the sequence, backward gathers both projections' inputs again
    (Korthikanti et al. 2022, section 4.2.2).

    Recomputation that stops once it has what the backward pass needs leaves out the last collective. Where gate and up
    projections are on their own, each sums the gradient of its input, and gathers its input alone if it gathers again.
    """
    if layout.tp < 2:
        return LayerMessages((), ())
    more = 0 if rules.joint_gate or not job.model.gated_mlp else 1
    last = 2 if rules.repeats_last else 1
    if not layout.sequence_parallel:
        reduce = _hidden(job, layout, "all_reduce")
        return LayerMessages((reduce.repeated(2),), (reduce.repeated(2 + more),), (reduce.repeated(last),))
    gather, scatter = _hidden(job, layout, "all_gather"), _hidden(job, layout, "reduce_scatter")
    inputs = 2 + (more if rules.gathers_again else 0)
    backward = (scatter.repeated(inputs), gather.repeated(2 + inputs if rules.gathers_again else 2))
    forward = (gather.repeated(inputs), scatter.repeated(2))
    return LayerMessages(forward, backward, (gather.repeated(inputs), scatter.repeated(last)))


def _hidden(job: Job, layout: Layout, collective: str, times: float = 1.0) -> Message:
    """A tensor-parallel collective over a micro-batch's hidden states."""
    dtype = job.stack.tensor_parallel_dtype(job.training, sequence_parallel=layout.sequence_parallel)
    num_bytes = _hidden_elements(job, layout) * DTYPE_BYTES[dtype]
    return Message("tp", collective, num_bytes, layout.tp, dtype, times)


def _hidden_elements(job: Job, layout: Layout) -> float:
    return float(_tokens(job, layout) * job.model.hidden)


def _tokens(job: Job, layout: Layout) -> int:
    return layout.micro_batch * job.model.seq_len // layout.cp


def _context_parallel(job: Job, layout: Layout, rules: MessageRules) -> LayerMessages:
    """Keys and values of the whole sequence are gathered (Llama 3, section 3.3.2), their gradients summed and cut."""
    if layout.cp < 2:
        return LayerMessages((), ())
    model, dtype = job.model, job.training.dtype
    heads = -(-model.kv_heads // layout.tp)
    whole = 2.0 * layout.micro_batch * model.seq_len * heads * model.head_dim * DTYPE_BYTES[dtype]
    gather = Message("cp", "all_gather", whole, layout.cp, dtype)
    scatter = gather._replace(collective="reduce_scatter")
    return LayerMessages((gather,), (gather, scatter) if rules.gathers_keys_again else (scatter,), (gather,))


def _expert_parallel(job: Job, layout: Layout) -> LayerMessages:
    """Tokens go to their experts and come back (Lepikhin et al. 2021)."""
    model, training = job.model, job.training
    if not model.num_experts or layout.ep < 2:
        return LayerMessages((), ())
    share = layout.tp if layout.sequence_parallel else 1
    routed = _hidden_elements(job, layout) * training.dtype_bytes * model.experts_per_token / share
    both = (Message("ep", "all_to_all", routed, layout.ep, training.dtype, 2),)
    return LayerMessages(both, both, both)


def embedding_messages(job: Job, layout: Layout, rules: MessageRules) -> LayerMessages:
    """Of the embedding and one micro-batch: each rank has a part of the vocabulary."""
    if layout.tp < 2:
        return LayerMessages((), ())
    if not layout.sequence_parallel:
        return LayerMessages((_hidden(job, layout, "all_reduce"),), ())
    reduction = "reduce_scatter" if rules.scatters_embedding else "all_reduce"
    return LayerMessages((_hidden(job, layout, reduction),), (_hidden(job, layout, "all_gather"),))


def head_messages(job: Job, layout: Layout) -> LayerMessages:
    """Of the head and one micro-batch, and of the loss over a divided vocabulary: each token's maximum, sum and
    target's logit, in fp32; else all logits are gathered.
    """
    if layout.tp < 2:
        return LayerMessages((), ())
    loss = Message("tp", "all_reduce", 4.0 * _tokens(job, layout), layout.tp, "fp32", 3)
    if not job.stack.loss_parallel:
        logits = float(_tokens(job, layout)) * padded_vocab(job.model, layout.tp) * job.training.dtype_bytes
        loss = Message("tp", "all_gather", logits, layout.tp, job.training.dtype)
    if not layout.sequence_parallel:
        return LayerMessages((loss,), (_hidden(job, layout, "all_reduce"),))
    return LayerMessages((_hidden(job, layout, "all_gather"), loss), (_hidden(job, layout, "reduce_scatter"),))


def send_message(job: Job, layout: Layout, rules: MessageRules) -> Message:
    """What a rank sends to the next stage for one micro-batch: a part of it where tensor-parallel peers have it whole
    (Narayanan et al. 2021, section 4.1).
    """
    whole = rules.whole_sends and not layout.sequence_parallel
    num_bytes = _hidden_elements(job, layout) * job.training.dtype_bytes / (1 if whole else layout.tp)
    return Message("pp", SEND, num_bytes, layout.pp, job.training.dtype)


def received_messages(job: Job, layout: Layout, rules: MessageRules) -> tuple[Message, ...]:
    """What joins the parts of one such message on the other side."""
    if layout.tp < 2 or layout.sequence_parallel or rules.whole_sends:
        return ()
    num_bytes = _hidden_elements(job, layout) * job.training.dtype_bytes
    return (Message("tp", "all_gather", num_bytes, layout.tp, job.training.dtype),)


def tied_table_messages(job: Job, layout: Layout, rules: MessageRules) -> tuple[Message, ...]:
    """The gradients of a tied table, summed over the first and the last stage once a step (Megatron-LM)."""
    model = job.model
    if layout.pp == 1 or not model.tied_embeddings:
        return ()
    dtype = job.stack.sums_in(job.training)
    shards = layout.shards if layout.zero_stage and rules.shards_tied_table else 1
    table = padded_vocab(model, layout.tp) // layout.tp * model.hidden
    return (Message("pp", "all_reduce", table / shards * DTYPE_BYTES[dtype], 2, dtype),)


def replicated_messages(job: Job, layout: Layout, stage: RankStage) -> tuple[Message, ...]:
    """Gradients, once a step, of what every tensor-parallel rank has whole and sees a part of the sequence for: norms,
    and the biases of what is summed.
    """
    model = job.model
    if layout.tp < 2 or not layout.sequence_parallel:
        return ()
    norms = (2 * stage.layers + stage.last) * model.norm_params
    biases = 2 * stage.layers * model.hidden if model.bias else 0
    return (Message("tp", "all_reduce", 4.0 * (norms + biases), layout.tp, "fp32"),)


def gradient_messages(job: Job, layout: Layout, held: RankParameters, rules: MessageRules) -> GradientMessages:
    """Gradients, and with ZeRO the weights (Rajbhandari et al. 2020, section 7), of a rank that holds `held`."""
    ranks = layout.dp * layout.cp
    parts = (held.dense - held.ends, held.ends)
    if layout.replicas == 1 or not layout.zero_stage:
        dense = _gradients(job, layout, ("dp", ranks), parts, rules)
    else:
        dense = _over_replicas(_gradients(job, layout, ("sdp", layout.shards), parts, rules), layout)
    if not held.experts:
        return dense
    experts = _gradients(job, layout, ("edp", ranks // layout.ep), (held.experts, 0.0), rules)
    return GradientMessages(*(ours + theirs for ours, theirs in zip(dense, experts, strict=True)))


def _over_replicas(within: GradientMessages, layout: Layout) -> GradientMessages:
    """Messages of a shard group, and after each reduction of gradients that of the shard over the replicas."""
    reduced = [message for message in within.backward if message.collective != "all_gather"]
    across = tuple(
        m._replace(axis="rdp", collective="all_reduce", num_bytes=m.num_bytes / layout.shards, ranks=layout.replicas)
        for m in reduced
    )
    return within._replace(backward=(*within.backward, *across))


def _gradients(
    job: Job, layout: Layout, group: tuple[str, int], held: tuple[float, float], rules: MessageRules
) -> GradientMessages:
    """Of the parameters that the ranks of one group share: `held` of layers, and of embedding and head.

    ZeRO-2 reduces every micro-batch, but in a pipeline, which sums the gradients of all first, or of those that pass a
    virtual stage one after another.
    """
    if group[1] < 2:
        return GradientMessages((), (), ())
    axis, ranks = group
    reduced, dtype = job.stack.sums_in(job.training), job.training.dtype
    count = layout.num_micro_batches(job.training.global_batch)

    def whole(collective: str, times: float) -> Message:
        kept = dtype if collective == "all_gather" else reduced
        return Message(axis, collective, sum(held) * DTYPE_BYTES[kept], ranks, kept, times)

    if layout.zero_stage == 0:
        return GradientMessages((), (whole("all_reduce", 1),), ())
    scatters: float = count if layout.zero_stage > 1 and layout.pp == 1 else 1
    if layout.zero_stage == 2 and layout.pp > 1 and job.stack.pipeline_shards_gradients:
        scatters = max(1.0, count / layout.pp) if layout.virtual_stages > 1 else count
    scatter = whole("all_reduce" if job.stack.reduces_whole and layout.zero_stage < 3 else "reduce_scatter", scatters)
    if layout.zero_stage == 2 and layout.pp == 1 and job.stack.gathers_every_pass:
        return GradientMessages((whole("all_gather", count),), (scatter,), ())
    if layout.zero_stage < 3:
        return GradientMessages((), (scatter,), (whole("all_gather", 1),))
    ahead, back = _gathers(whole("all_gather", 1), held, rules, count=count, pipeline=layout.pp > 1)
    return GradientMessages(ahead, (*back, scatter), ())


def _gathers(
    whole: Message, held: tuple[float, float], rules: MessageRules, *, count: int, pipeline: bool
) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """How ZeRO-3 gathers weights, overlapping with forward and with backward passes.

    In a pipeline a backward pass gathers unless it follows another, and keeps what it gathered for the next.
    """
    back = 1 if pipeline else count
    if rules.gathers_ends_again:
        return (whole.repeated(count),), (whole.repeated(back),)
    layers, ends = (whole._replace(num_bytes=whole.num_bytes * part / sum(held)) for part in held)
    if pipeline and rules.keeps_gathered:
        return (layers, ends), ()
    return (layers.repeated(count), ends.repeated(1 if pipeline else count)), (layers.repeated(back),)


def rank_messages(job: Job, layout: Layout, stage: RankStage, rules: MessageRules) -> tuple[Message, ...]:
    """Every message of a step of one rank."""
    count = layout.num_micro_batches(job.training.global_batch)
    found = [message.repeated(stage.layers) for message in _layer_step(job, layout, rules)]
    if stage.first:
        found += [message for messages in embedding_messages(job, layout, rules) for message in messages]
    if stage.last:
        found += [message for messages in head_messages(job, layout) for message in messages]
    if layout.pp > 1:
        found += _passed_on(job, layout, stage, rules)
    found = [message.repeated(count) for message in found]
    found += replicated_messages(job, layout, stage)
    if stage.first != stage.last:
        found += tied_table_messages(job, layout, rules)
    layers = stage_parameters(job.model, stage.layers, stage.dense_layers, tp=layout.tp, ep=layout.ep)
    ends = end_parameters(job.model, tp=layout.tp, first=stage.first, last=stage.last)
    held = RankParameters(layers.dense + ends, layers.experts, ends)
    for messages in gradient_messages(job, layout, held, rules):
        found += messages
    return tuple(message for message in found if message.num_bytes and message.times)


def _layer_step(job: Job, layout: Layout, rules: MessageRules) -> tuple[Message, ...]:
    found = layer_messages(job, layout, rules)
    return found.forward + found.backward + (found.repeated if layout.recompute == "full" else ())


def _passed_on(job: Job, layout: Layout, stage: RankStage, rules: MessageRules) -> list[Message]:
    """Activations on and gradients back of one micro-batch, for every chunk that has a neighbour."""
    message = send_message(job, layout, rules)
    on, back = stage.chunks - stage.last, stage.chunks - stage.first
    joined = [each.repeated(on + back) for each in received_messages(job, layout, rules)]
    return [message.repeated(on), message._replace(collective=SEND_BACK).repeated(back), *joined]


def rank_bytes(messages: Iterable[Message]) -> dict[str, float]:
    """Bytes that a rank sends, by axis."""
    found: dict[str, float] = defaultdict(float)
    for message in messages:
        found[message.axis] += message.sent_bytes
    return dict(found)
