"""The model as DeepSpeed's PipelineModule, with the plan's layer split."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from itertools import count
from typing import Any

import torch
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe import schedule
from deepspeed.runtime.pipe.topology import ProcessTopology
from torch import Tensor, nn

from launcher.layout.split import balanced_split
from launcher.model import Model
from launcher.worker.engines.engine import EngineContext
from launcher.worker.model.tensor_layers import TensorAxis, VocabEmbedding, VocabHead, fill, mean_loss, shard_block
from launcher.worker.model.transformer import Block, make_norm
from launcher.worker.parallel.mesh import Axes
from launcher.worker.parallel.process_groups import ProcessGroup

AXIS_NAMES = {"tp": "model", "dp": "data", "pp": "pipe"}  # DeepSpeed's names of our axes
Make = Callable[[], nn.Module]


class Spec(LayerSpec):  # type: ignore[misc]
    """A layer that only its stage creates."""

    def __init__(self, make: Make) -> None:
        super().__init__(nn.Module)
        self._make = make

    def build(self, log: bool = False) -> nn.Module:
        return self._make()


class TiedSpec(TiedLayerSpec):  # type: ignore[misc]
    """A layer with a weight shared by the stages that have it; `forward_fn(module, x)` is its forward there."""

    def __init__(self, make: Make, forward_fn: Callable[[Any, Tensor], Tensor] | None) -> None:
        super().__init__("tokens", nn.Module, forward_fn=forward_fn, tied_weight_attr="weight")
        self._make = make

    def build(self, log: bool = False) -> nn.Module:
        return self._make()


class Positions(nn.Module):
    """Adds learned positions to (batch, seq, hidden)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.positions = nn.Embedding(model.seq_len, model.hidden)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.positions(torch.arange(x.shape[1], device=x.device))
        return out


class Final(nn.Module):
    """The last norm."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.norm = make_norm(model)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x)
        return out


class SplitPipeline(PipelineModule):  # type: ignore[misc]
    """PipelineModule with given stage bounds: its own rules balance by parameters or layer types only."""

    def __init__(self, *args: Any, bounds: list[int], **kwargs: Any) -> None:
        # DeepSpeed partitions inside its constructor, before nn.Module attributes may be set the usual way.
        object.__setattr__(self, "given_bounds", bounds)
        super().__init__(*args, **kwargs)

    def _partition_layers(self, method: str = "given") -> None:
        self.parts = self.given_bounds
        stage = self._topo.get_coord(self.global_rank).pipe
        self._set_bounds(start=self.parts[stage], stop=self.parts[stage + 1])


def pipeline_module(context: EngineContext) -> nn.Module:
    """Build the PipelineModule of a plan, with its initial values."""
    axes, layout, model = context.axes, context.plan.layout, context.plan.job.model
    before, blocks, after = layer_specs(context)
    split = layout.layer_split or balanced_split(model, num_stages=layout.pp)
    ends = [len(before) + sum(split[: stage + 1]) for stage in range(layout.pp - 1)]
    specs = [*before, *blocks, *after]

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return mean_loss(logits, targets, axes, vocab=model.vocab)

    module: nn.Module = SplitPipeline(specs, topology=topology(axes), loss_fn=loss, bounds=[0, *ends, len(specs)])
    return module


def layer_specs(context: EngineContext) -> tuple[list[LayerSpec], list[LayerSpec], list[LayerSpec]]:
    """Return the layers before the blocks, the blocks, and the layers after them."""
    plan, weights, group = context.plan, context.weights, context.axes.group("tp")
    axis = TensorAxis(ProcessGroup(group))
    model, training = plan.job.model, plan.job.training

    def filled(module: nn.Module, prefix: str) -> nn.Module:
        fill(module, prefix=prefix, model=model, weights=weights, group=group)
        return module

    def block(index: int) -> nn.Module:
        made = Block(model, kernel=training.attention, recompute=plan.layout.recompute)
        return filled(shard_block(made, axis) if group.size() > 1 else made, f"layers.{index}.")

    def tokens() -> nn.Module:
        return filled(VocabEmbedding(model.vocab, model.hidden, axis=axis), "tokens.")

    def tied_logits(embedding: VocabEmbedding, x: Tensor) -> Tensor:
        return nn.functional.linear(axis.enter(x), embedding.weight)

    tied = model.tied_embeddings
    before = [TiedSpec(tokens, None) if tied else Spec(tokens)]
    before += [Spec(lambda: filled(Positions(model), ""))] if model.positions == "learned" else []
    blocks = [Spec(lambda index=index: block(index)) for index in range(model.layers)]  # type: ignore[misc]
    after = [Spec(lambda: filled(Final(model), ""))]
    after += [
        TiedSpec(tokens, tied_logits)
        if tied
        else Spec(lambda: filled(VocabHead(model.hidden, model.vocab, axis=axis), "head."))
    ]
    return before, blocks, after


# What DeepSpeed's pipeline does to run a step, as kinds of spans.
PASSES = {
    schedule.ForwardPass: "F",
    schedule.BackwardPass: "B",
    schedule.ReduceTiedGrads: "dp",
    schedule.ReduceGrads: "dp",
    schedule.OptimizerStep: "optimizer",
}


def record_passes(engine: Any, context: EngineContext) -> None:
    """Let an engine note what it does as spans. It passes no numbers of micro-batches, and takes them in order."""
    stage, spans = context.axes.coordinate["pp"], context.spans
    total = context.plan.layout.num_micro_batches(context.plan.job.training.global_batch)

    def noted(kind: str, run: Callable[..., Any]) -> Callable[..., Any]:
        turn = count()

        @wraps(run)
        def noting(*args: Any, **kwargs: Any) -> Any:
            place = {"stage": stage, "micro_batch": next(turn) % total} if kind in ("F", "B") else {}
            with spans.span(kind, **place):
                return run(*args, **kwargs)

        return noting

    steps = engine._INSTRUCTION_MAP
    engine._INSTRUCTION_MAP = {**steps, **{step: noted(kind, steps[step]) for step, kind in PASSES.items()}}


def topology(axes: Axes) -> ProcessTopology:
    """Return the plan's grid in DeepSpeed's terms, slowest axis first."""
    names = [axis for axis in reversed(axes.grid.axes) if axis in AXIS_NAMES]
    return ProcessTopology([AXIS_NAMES[axis] for axis in names], [axes.degree(axis) for axis in names])
