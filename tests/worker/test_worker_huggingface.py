"""The same weights give the same logits here and in transformers' own Llama and GPT-2, imported and exported."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import LLAMA, TINY, make_plan, run_ranks
from training import ADAMW, make_engine, steps

from launcher.errors import InputError
from launcher.layout import Layout
from launcher.model import Model
from launcher.planner.options import TrainOptions
from launcher.worker.checkpoint.saver import CheckpointManager
from launcher.worker.data.tokens import convert
from launcher.worker.model.huggingface import CONFIG, WEIGHTS, FolderWeights, config_of, export, main
from launcher.worker.model.init import InitialWeights
from launcher.worker.model.transformer import StageShape, Transformer

pytestmark = pytest.mark.skipif(not find_spec("transformers"), reason="no transformers")
MODELS = {
    "llama": LLAMA,
    "llama with another base": replace(LLAMA, rope_theta=500000.0),
    "tied llama": replace(LLAMA, tied_embeddings=True),
    "llama with narrow heads": replace(LLAMA, head_dim=4),
    "gpt2": TINY,
}


def theirs(model: Model) -> Any:
    """A randomly initialised transformers model of the same shape, with nothing left at ones or zeros."""
    import transformers

    torch.manual_seed(0)
    config = config_of(model)
    kind = transformers.LlamaConfig if config["model_type"] == "llama" else transformers.GPT2Config
    made = transformers.AutoModelForCausalLM.from_config(
        kind(**{k: v for k, v in config.items() if k != "architectures"})
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2)
    return made.eval()


def ours(model: Model, folder: Path) -> Transformer:
    made = Transformer(model, StageShape.whole(model))
    if model.tied_embeddings:
        made.tie()
    weights = InitialWeights(model, seed=1, folder=folder)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(weights(name, parameter.shape))
    return made


def ids(model: Model) -> torch.Tensor:
    return torch.randint(0, model.vocab, (3, model.seq_len), generator=torch.Generator().manual_seed(5))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_those_of_transformers_with_its_weights(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    reference = theirs(model)
    reference.save_pretrained(tmp_path / "hf", safe_serialization=True)
    with torch.no_grad():
        right = reference(ids(model)).logits
        assert right.std() > 0.1
        assert torch.allclose(ours(model, tmp_path / "hf")(ids(model)), right, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama with narrow heads", "gpt2"])
def test_a_sharded_checkpoint_exports_to_what_transformers_loads(name: str, tmp_path: Path) -> None:
    """Train under tp2 × pp2 × dp2 with ZeRO-1, save, export, and compare with what transformers computes."""
    model = MODELS[name]
    layout = Layout(tp=2, pp=2, dp=2, zero_stage=1)

    def body(rank: int) -> None:
        engine, axes = make_engine(layout, rank, options=ADAMW, model=model, optimizer="adamw")
        manager = CheckpointManager(tmp_path / "checkpoints", plan=make_plan(layout, model=model), options=ADAMW)
        steps(engine, axes, range(2), model=model, lr=1e-2)
        manager.save(2, engine.state(loading=False))
        manager.close()

    run_ranks(8, body)
    folder = export(tmp_path / "checkpoints" / "step-00000002", tmp_path / "exported")
    assert {path.name for path in folder.iterdir()} == {WEIGHTS, CONFIG}
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        mine = ours(model, folder)(ids(model))
        assert torch.allclose(loaded(ids(model)).logits, mine, atol=1e-4)
        fresh = Transformer(model, StageShape.whole(model))
        assert not torch.allclose(fresh(ids(model)), mine, atol=1e-2)


@pytest.mark.slow
def test_a_run_starts_from_a_folder_under_tensor_and_pipeline_parallelism(tmp_path: Path) -> None:
    theirs(LLAMA).save_pretrained(tmp_path / "hf", safe_serialization=True)
    options = TrainOptions(**{**vars(ADAMW), "init_from": str(tmp_path / "hf")})

    def first_loss(layout: Layout, start: TrainOptions = options) -> float:
        def body(rank: int) -> float:
            engine, axes = make_engine(layout, rank, options=start, model=LLAMA, optimizer="adamw")
            return steps(engine, axes, range(1), model=LLAMA, lr=0.0)[0][0]

        return float(run_ranks(layout.world_size, body)[0])

    one = first_loss(Layout(tp=1, pp=1, dp=1, micro_batch=8))
    assert first_loss(Layout(tp=2, pp=2, dp=1, micro_batch=2)) == pytest.approx(one, abs=1e-5)
    assert abs(first_loss(Layout(tp=1, pp=1, dp=1, micro_batch=8), ADAMW) - one) > 1e-3


def test_a_folder_of_another_shape_is_refused_with_every_difference(tmp_path: Path) -> None:
    theirs(LLAMA).save_pretrained(tmp_path / "hf", safe_serialization=True)
    with pytest.raises(InputError) as error:
        FolderWeights(tmp_path / "hf", model=replace(LLAMA, hidden=64, layers=2, rope_theta=500000.0))
    assert [key for key in ("hidden_size", "num_hidden_layers", "rope_theta") if key not in str(error.value)] == []
    with pytest.raises(InputError, match="neither Llama- nor GPT-2-shaped"):
        FolderWeights(tmp_path / "hf", model=replace(LLAMA, bias=True))
    with pytest.raises(InputError, match="head_dim=4"):
        FolderWeights(tmp_path / "hf", model=replace(TINY, head_dim=4))


def test_export_reports_a_missing_checkpoint_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path / "step-00000001"), str(tmp_path / "out")])
    assert end.value.code == 2
    assert "manifest.json cannot be read" in capsys.readouterr().err


def test_text_becomes_tokens_by_bytes_and_by_a_tokenizer(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be\nthat is the question\n")
    as_bytes = convert(tmp_path / "bytes.tokens", [text], tokenizer=None)
    assert bytes(np.asarray(as_bytes.tokens)).decode() == text.read_text()

    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.train([str(text)], tokenizers.trainers.WordLevelTrainer(special_tokens=["?"]))
    made.save(str(tmp_path / "tokenizer.json"))
    found = convert(tmp_path / "words.tokens", [text, text], tokenizer=tmp_path / "tokenizer.json")
    words = text.read_text().split() * 2
    assert [made.id_to_token(int(token)) for token in found.tokens] == words
    assert found.vocab == made.get_vocab_size()
    (tmp_path / "bad.json").write_text(json.dumps({"no": "tokenizer"}))
    with pytest.raises(InputError, match="cannot read the tokenizer"):
        convert(tmp_path / "x", [text], tokenizer=tmp_path / "bad.json")
