"""config.json of every family, as transformers writes it: the same defaults, and the parameters of the real model."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from launcher.cli import main
from launcher.config.compose import load
from launcher.errors import InputError
from launcher.model.from_hf import HfModel, read_hf
from launcher.model.hf_families import FAMILIES
from launcher.model.shape import Model

pytestmark = pytest.mark.skipif(not find_spec("transformers"), reason="no transformers")

# As published, in the numbers that matter; each is written by transformers' own class.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "pythia 1b": ("gpt_neox", {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 8,
                               "intermediate_size": 8192, "vocab_size": 50304}),
    "llama 3.2 1b": ("llama", {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
                               "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 8192,
                               "vocab_size": 128256, "tie_word_embeddings": True}),
    "mistral 7b": ("mistral", {"sliding_window": None}),
    "qwen2 0.5b": ("qwen2", {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
                             "num_key_value_heads": 2, "intermediate_size": 4864, "tie_word_embeddings": True}),
    "qwen3 1.7b": ("qwen3", {"hidden_size": 2048, "num_hidden_layers": 28, "num_attention_heads": 16,
                             "num_key_value_heads": 8, "intermediate_size": 6144, "tie_word_embeddings": True}),
    "qwen3 4b": ("qwen3", {"hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32,
                           "num_key_value_heads": 8, "intermediate_size": 9728, "tie_word_embeddings": True}),
    "gemma 7b": ("gemma", {}),
    "gemma2 2b": ("gemma2", {}),
    "gemma3 4b": ("gemma3_text", {"hidden_size": 2560, "num_hidden_layers": 34, "intermediate_size": 10240}),
    "mixtral 8x7b": ("mixtral", {}),
    "qwen1.5 moe": ("qwen2_moe", {}),
    "qwen3 30b": ("qwen3_moe", {"num_hidden_layers": 48, "head_dim": 128}),
    "deepseek v2 lite": ("deepseek_v2", {"hidden_size": 2048, "num_hidden_layers": 27, "num_attention_heads": 16,
                                         "num_key_value_heads": 16, "intermediate_size": 10944, "q_lora_rank": None,
                                         "moe_intermediate_size": 1408, "num_experts_per_tok": 6,
                                         "first_k_dense_replace": 1}),
    "deepseek v3": ("deepseek_v3", {}),
}  # fmt: skip
EXACT = ("gpt2", "llama 3.2 1b", "mistral 7b", "mixtral 8x7b", "pythia 1b", "qwen3 1.7b", "qwen3 4b", "qwen2 0.5b")


def config_of(name: str) -> Any:
    from transformers import AutoConfig

    kind, numbers = MODELS[name]
    return AutoConfig.for_model(kind, **numbers)


def written(config: Any, folder: Path) -> dict[str, Any]:
    """What transformers writes: its config.json leaves defaults out."""
    config.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())  # type: ignore[no-any-return]


def read(name: str, folder: Path) -> HfModel:
    return read_hf(written(config_of(name), folder), name="read")


def real_parameters(config: Any) -> int:
    """Of the model that transformers makes, without its memory."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("kind", FAMILIES)
def test_defaults_are_those_of_transformers(kind: str) -> None:
    from transformers import AutoConfig

    default = AutoConfig.for_model(kind)
    for key, value in FAMILIES[kind].defaults.items():
        found = getattr(default, key)
        if value is None:  # then it follows from the heads
            value = {"head_dim": found, "num_key_value_heads": default.num_attention_heads}.get(key)
        assert found == value, key


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_model_that_transformers_makes(name: str, tmp_path: Path) -> None:
    assert read(name, tmp_path).parameters == real_parameters(config_of(name))


@pytest.mark.parametrize("name", MODELS)
def test_what_the_keys_cannot_say_is_reported_where_parameters_differ(name: str, tmp_path: Path) -> None:
    found = read(name, tmp_path)
    off = abs(Model(**found.keys).params - found.parameters) / found.parameters
    reported = [line for line in found.missing if line.startswith("all of its")]
    assert bool(reported) == (off > 1e-3)
    if name in EXACT:
        assert off < 1e-3 and not reported


def test_numbers_of_llama_are_read(tmp_path: Path) -> None:
    keys = read("llama 3.2 1b", tmp_path).keys
    assert (keys["kv_heads"], keys["ffn_hidden"], keys["tied_embeddings"]) == (8, 8192, True)
    assert (keys["norm"], keys["positions"], keys["bias"], keys["gated_mlp"]) == ("rmsnorm", "rotary", False, True)


def test_heads_whose_width_is_their_own_are_read(tmp_path: Path) -> None:
    keys = read("qwen3 4b", tmp_path).keys
    assert (keys["hidden"], keys["heads"], keys["head_dim"]) == (2560, 32, 128)
    assert not any("heads of" in line for line in read("qwen3 4b", tmp_path).missing)


def test_rotary_base_is_read_where_transformers_4_and_5_have_it() -> None:
    old = {"model_type": "llama", "rope_theta": 500000.0}
    new = {"model_type": "llama", "rope_parameters": {"rope_theta": 500000.0, "rope_type": "llama3"}}
    assert read_hf(old, name="old").keys["rope_theta"] == read_hf(new, name="new").keys["rope_theta"] == 500000.0
    assert any("type llama3" in line for line in read_hf(new, name="new").missing)


def test_what_has_no_key_is_named(tmp_path: Path) -> None:
    deepseek = " ".join(read("deepseek v3", tmp_path).missing)
    for words in ("multi-latent attention", "shared experts", "3 of its 61 layers without experts", "671."):
        assert words in deepseek
    strange = read_hf({"model_type": "llama", "num_memory_layers": 3}, name="x").missing
    assert "the keys num_memory_layers" in strange


def test_the_language_model_of_a_larger_one_is_read() -> None:
    inner = {"model_type": "qwen3", "num_hidden_layers": 5}
    found = read_hf({"model_type": "qwen3_vl", "text_config": inner, "vision_config": {}}, name="x")
    assert found.keys["layers"] == 5
    assert "anything but the language model of qwen3_vl" in found.missing


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "bert"}, "known are deepseek_v2"),
        ({}, "model_type=None"),
        ({"model_type": "llama", "hidden_size": "wide"}, "hidden_size='wide'"),
        ({"model_type": "llama", "num_hidden_layers": 0}, "num_hidden_layers=0 must be a whole number from 1"),
        ({"model_type": "llama", "hidden_size": 10**12}, "hidden_size"),
    ],
)
def test_what_is_no_model_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_hf(config, name="x")


def test_a_folder_is_a_model_of_the_command_line_and_what_the_user_sets_wins(tmp_path: Path) -> None:
    folder = tmp_path / "My Llama"
    written(config_of("llama 3.2 1b"), folder)
    settings = load(["model.seq_len=512", f"model=hf:{folder}"])
    model = settings.job.model
    assert (model.name, model.layers, model.seq_len) == ("My-Llama", 16, 512)
    assert load([f"model=hf:{folder / 'config.json'}"]).job.model.layers == 16
    assert load(["model.layers=3", f"model=hf:{folder}"]).job.model.layers == 3


def test_what_has_no_key_is_noted_with_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(config_of("deepseek v2 lite"), tmp_path)
    assert (
        main(
            [
                "plan",
                "cluster=dgx_a100_80g",
                "cluster.num_nodes=4",
                f"model=hf:{tmp_path}",
                "train.global_batch=64",
                "top=1",
            ]
        )
        == 0
    )
    assert "there is no key for multi-latent attention" in capsys.readouterr().err


@pytest.mark.parametrize("text", [None, "{", "[]", '{"model_type": "bert"}'])
def test_a_file_that_is_no_model_is_one_message(
    text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert main(["plan", f"model=hf:{tmp_path}"]) == 2
    err = capsys.readouterr().err
    assert "config.json" in err or "model_type" in err
    assert "Traceback" not in err
