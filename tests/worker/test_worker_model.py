"""The trained model is the planned one: parameters by part, initial values by name, the loss over a cut vocabulary."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import LLAMA, TINY, run_ranks
from torch.utils.flop_counter import FlopCounterMode

from launcher.layout.split import balanced_split
from launcher.model import Model
from launcher.worker.model.init import initial_value
from launcher.worker.model.loss import cross_entropy_sum, vocab_range
from launcher.worker.model.transformer import Block, StageShape, Transformer, stage_shapes
from launcher.worker.parallel.process_groups import ProcessGroup

SHAPES = {
    "gpt": TINY,
    "llama": LLAMA,
    "untied gpt": replace(TINY, tied_embeddings=False),
    "gpt without bias": replace(TINY, bias=False),
    "rotary with layernorm": replace(TINY, positions="rotary"),
    "tied llama": replace(LLAMA, tied_embeddings=True),
    "wide heads": replace(LLAMA, head_dim=16),
    "gpt with wide heads": replace(TINY, head_dim=12),
}


def build(model: Model, shape: StageShape | None = None) -> Transformer:
    with torch.device("meta"):
        stage = Transformer(model, shape or StageShape.whole(model))
    if model.tied_embeddings:
        stage.tie()
    return stage


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_as_many_as_the_plan_counts(name: str) -> None:
    model = SHAPES[name]
    whole = build(model)
    assert count(whole) == model.params
    assert {count(block) for block in whole.layers.values()} == {model.layer_params}


@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_recomputing_a_layer_leaves_out_its_last_product(name: str) -> None:
    model, tokens = SHAPES[name], 32

    def flops(recompute: str) -> int:
        block = Block(model, kernel="math", recompute=recompute)
        with FlopCounterMode(display=False) as counter:
            block(torch.ones(1, tokens, model.hidden)).sum().backward()
        return counter.get_total_flops()

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Block(model, kernel="math", recompute="none")(torch.ones(1, tokens, model.hidden))
    last_product = 2 * tokens * model.hidden * model.ffn_hidden
    assert flops("full") - flops("none") == counter.get_total_flops() - last_product


@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
def test_stages_partition_the_parameters_by_name(num_stages: int) -> None:
    model = replace(TINY, tied_embeddings=False)
    stages = [build(model, shape) for shape in stage_shapes(balanced_split(model, num_stages=num_stages))]
    names = [name for stage in stages for name, _ in stage.named_parameters()]
    assert sorted(names) == sorted(name for name, _ in build(model).named_parameters())


def test_initial_values_depend_on_seed_and_name_alone() -> None:
    values = {
        (name, seed): initial_value(name, (64, 64), model=TINY, seed=seed)
        for name in ("layers.0.mlp.up.weight", "layers.1.mlp.up.weight", "layers.0.mlp.down.weight")
        for seed in (1, 2)
    }
    assert len({float(value.sum()) for value in values.values()}) == len(values)
    again = initial_value("layers.0.mlp.up.weight", (64, 64), model=TINY, seed=1)
    assert torch.equal(again, values["layers.0.mlp.up.weight", 1])
    assert float(values["layers.0.mlp.up.weight", 1].std()) == pytest.approx(0.02, rel=0.05)
    assert float(values["layers.0.mlp.down.weight", 1].std()) == pytest.approx(0.02 / 8**0.5, rel=0.05)
    assert initial_value("layers.0.norm1.weight", (4,), model=TINY, seed=1).tolist() == [1.0] * 4


@pytest.mark.parametrize(("vocab", "size"), [(67, 2), (64, 4), (3, 4), (1, 2)])
def test_vocabulary_ranges_partition_the_vocabulary(vocab: int, size: int) -> None:
    ranges = [vocab_range(vocab, rank=rank, size=size) for rank in range(size)]
    assert [token for start, end in ranges for token in range(start, end)] == list(range(vocab))


@pytest.mark.slow
def test_cross_entropy_over_a_cut_vocabulary_equals_torch_with_its_gradient() -> None:
    def body(rank: int) -> dict[str, float]:
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(2, 5, 67, generator=generator) * 30
        targets = torch.randint(0, 67, (2, 5), generator=generator)
        start, end = vocab_range(67, rank=rank, size=2)
        mine = logits[..., start:end].clone().requires_grad_()
        whole = logits.clone().requires_grad_()
        loss = cross_entropy_sum(mine, targets, start=start, peers=ProcessGroup(dist.group.WORLD))
        right = F.cross_entropy(whole.flatten(0, 1), targets.flatten(), reduction="sum")
        (loss / 7).backward()
        (right / 7).backward()
        assert mine.grad is not None and whole.grad is not None
        grad_gap = (mine.grad - whole.grad[..., start:end]).abs().max()
        return {"loss": float((loss - right).abs() / right), "grad": float(grad_gap)}

    for found in run_ranks(2, body):
        assert found["loss"] < 1e-6 and found["grad"] < 1e-6


@pytest.mark.parametrize("kernel", ["math", "flash"])
def test_attention_kernels_agree(kernel: str) -> None:
    torch.manual_seed(0)
    model = LLAMA
    stage = Transformer(model, StageShape.whole(model), kernel=kernel)
    reference = Transformer(model, StageShape.whole(model), kernel="flash")
    reference.load_state_dict(stage.state_dict())
    ids = torch.randint(0, model.vocab, (2, model.seq_len))
    assert torch.allclose(stage(ids), reference(ids), atol=1e-5)
