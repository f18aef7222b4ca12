"""config.json of every family, as transformers writes it: the same defaults, and the parameters of the real model."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from published_configs import PUBLISHED, WITH_CODE

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
REMOTE = {"internlm2", "chatglm", "kimi_k2"}  # transformers has no class of these
SMALL = {
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "intermediate_size": 640,
    "vocab_size": 512,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
WIDE = {**GROUPED, "head_dim": 48}
FEW = {"num_experts_per_tok": 2, "moe_intermediate_size": 96}
OPTIONS = {"hidden": {"hidden_size": 256}, "gpt2": {"n_embd": 256, "n_layer": 3, "n_head": 8, "vocab_size": 512}}
# What a family's own options change, in small: each is written by transformers' own class.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, biases": ("llama", {**GROUPED, "attention_bias": True, "mlp_bias": True}),
    "llama, attention biases": ("llama", {**WIDE, "attention_bias": True}),
    "mistral, wide heads": ("mistral", WIDE),
    "ministral3": ("ministral3", WIDE),
    "ministral": ("ministral", {**WIDE, "sliding_window": 32}),
    "qwen2, tied": ("qwen2", {**GROUPED, "tie_word_embeddings": True}),
    "qwen3, biases": ("qwen3", {**WIDE, "attention_bias": True}),
    "gemma2": ("gemma2", WIDE),
    "gemma3": ("gemma3_text", WIDE),
    "phi3": ("phi3", GROUPED | {"pad_token_id": 0}),
    "granite": ("granite", {**GROUPED, "attention_bias": True, "mlp_bias": True}),
    "smollm3": ("smollm3", GROUPED | {"pad_token_id": 0}),
    "olmo": ("olmo", GROUPED),
    "olmo2": ("olmo2", GROUPED),
    "stablelm": ("stablelm", {**GROUPED, "use_qkv_bias": True, "qk_layernorm": True}),
    "stablelm, parallel": ("stablelm", {**GROUPED, "use_parallel_residual": True}),
    "cohere": ("cohere", {**GROUPED, "use_qk_norm": True}),
    "cohere2": ("cohere2", WIDE),
    "glm": ("glm", {**WIDE, "pad_token_id": 0}),
    "glm4": ("glm4", {**WIDE, "pad_token_id": 0}),
    "phi": ("phi", {**GROUPED, "qk_layernorm": True}),
    "gpt2, inner": ("gpt2", {**OPTIONS["gpt2"], "n_inner": 320}),
    "gpt2, untied": ("gpt2", {**OPTIONS["gpt2"], "tie_word_embeddings": False}),
    "gpt_bigcode": ("gpt_bigcode", OPTIONS["gpt2"]),
    "gpt_bigcode, heads": ("gpt_bigcode", {**OPTIONS["gpt2"], "multi_query": False}),
    "gptj": ("gptj", OPTIONS["gpt2"]),
    "gpt_neo": ("gpt_neo", {"hidden_size": 256, "num_layers": 2, "num_heads": 8, "vocab_size": 512,
                            "attention_types": [[["global", "local"], 1]]}),
    "gpt_neox, no biases": ("gpt_neox", {**SMALL, "attention_bias": False}),
    "opt": ("opt", {"hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 8, "ffn_dim": 640,
                    "vocab_size": 512, "word_embed_proj_dim": 256}),
    "bloom": ("bloom", {"hidden_size": 256, "n_layer": 3, "n_head": 8, "vocab_size": 512}),
    "falcon, one norm": ("falcon", {**OPTIONS["hidden"], "num_hidden_layers": 3, "num_attention_heads": 8,
                                    "new_decoder_architecture": True, "num_kv_heads": 2,
                                    "num_ln_in_parallel_attn": 1}),
    "falcon, ALiBi": ("falcon", {**OPTIONS["hidden"], "num_hidden_layers": 3, "num_attention_heads": 8, "alibi": True,
                                 "multi_query": False, "parallel_attn": False, "bias": True}),
    "mpt": ("mpt", {"d_model": 256, "n_layers": 3, "n_heads": 8, "vocab_size": 512}),
    "starcoder2, no biases": ("starcoder2", {**GROUPED, "use_bias": False}),
    "mixtral": ("mixtral", {**WIDE, "num_local_experts": 4}),
    "granitemoe": ("granitemoe", {**GROUPED, "num_local_experts": 4, "attention_bias": True}),
    "phimoe": ("phimoe", {**GROUPED, "num_local_experts": 4, "attention_bias": True, "lm_head_bias": True}),
    "olmoe": ("olmoe", {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2}),
    "gpt_oss": ("gpt_oss", {**WIDE, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "llama4": ("llama4_text", {**WIDE, "num_local_experts": 4, "intermediate_size_mlp": 320, "num_hidden_layers": 4,
                               "interleave_moe_layer_step": 2}),
    "llama4, listed": ("llama4_text", {**WIDE, "num_local_experts": 4, "intermediate_size_mlp": 320,
                                       "moe_layers": [1]}),
    "qwen2_moe, sparse": ("qwen2_moe", {**GROUPED, **FEW, "num_experts": 4, "decoder_sparse_step": 2,
                                        "shared_expert_intermediate_size": 192}),
    "qwen3_moe, named": ("qwen3_moe", {**WIDE, **FEW, "num_experts": 4, "mlp_only_layers": [1]}),
    "glm4_moe": ("glm4_moe", {**WIDE, **FEW, "n_routed_experts": 4, "use_qk_norm": True, "attention_bias": True,
                              "n_group": 1, "topk_group": 1, "pad_token_id": 0}),
    "deepseek_v2": ("deepseek_v2", {**SMALL, **FEW, "n_routed_experts": 4, "attention_bias": True, "mlp_bias": False,
                                    "first_k_dense_replace": 1, "num_key_value_heads": 8, "q_lora_rank": 64}),
    "deepseek_v3": ("deepseek_v3", {**SMALL, **FEW, "n_routed_experts": 4, "first_k_dense_replace": 1, "n_group": 1,
                                    "topk_group": 1, "num_key_value_heads": 8, "q_lora_rank": None}),
}  # fmt: skip
EXACT = ("gpt2", "llama 3.2 1b", "mistral 7b", "mixtral 8x7b", "pythia 1b", "qwen3 1.7b", "qwen3 4b", "qwen2 0.5b")


def config_of(name: str) -> Any:
    from transformers import AutoConfig

    kind, numbers = (MODELS | VARIANTS)[name]
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


@pytest.mark.parametrize("kind", sorted(set(FAMILIES) - REMOTE))
def test_defaults_are_those_of_transformers(kind: str) -> None:
    from transformers import AutoConfig

    default = AutoConfig.for_model(kind)
    for key, value in FAMILIES[kind].defaults.items():
        found = getattr(default, key)
        if value is None:  # then it follows from the heads
            value = {"head_dim": found}.get(key, default.num_attention_heads if "kv" in key or "key" in key else None)
        assert found == value, key
    known = {*FAMILIES[kind].names.values(), *FAMILIES[kind].defaults}
    aliases = {name: key for name, key in default.attribute_map.items() if key in known}
    assert {"n_embed": "hidden_size", **FAMILIES[kind].aliases} == {"n_embed": "hidden_size", **aliases}
    theta = getattr(default, "rope_parameters", None) or {}
    assert theta.get("full_attention", theta).get("rope_theta", FAMILIES[kind].theta) == FAMILIES[kind].theta


@pytest.mark.parametrize("name", (*MODELS, *VARIANTS))
def test_parameters_are_those_of_the_model_that_transformers_makes(name: str, tmp_path: Path) -> None:
    assert read(name, tmp_path).parameters == real_parameters(config_of(name))


def test_every_family_is_held_to_a_model_of_transformers() -> None:
    held = {kind for kind, _ in (*MODELS.values(), *VARIANTS.values())}
    assert held == set(FAMILIES) - REMOTE


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_is_read_as_transformers_reads_it(name: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]))
    config = AutoConfig.from_pretrained(tmp_path).get_text_config()
    config.quantization_config = None  # parameters are counted, not bytes
    del config.quantization_config
    assert read_hf(PUBLISHED[name], name="read").parameters == real_parameters(config)


@pytest.mark.parametrize("name", WITH_CODE)
def test_a_model_with_code_of_its_own_has_the_parameters_of_its_weights(name: str) -> None:
    counted, config = WITH_CODE[name]
    assert read_hf(config, name="read").parameters == counted


def test_kimi_is_a_deepseek(tmp_path: Path) -> None:
    config = PUBLISHED["deepseek-ai/DeepSeek-V3"]
    assert read_hf({**config, "model_type": "kimi_k2"}, name="x").parameters == read_hf(config, name="x").parameters


@pytest.mark.parametrize("name", MODELS)
def test_what_the_keys_cannot_say_is_reported_where_parameters_differ(name: str, tmp_path: Path) -> None:
    found = read(name, tmp_path)
    off = abs(Model(**found.keys).params - found.parameters) / found.parameters
    reported = [line for line in found.missing if line.startswith("all of its")]
    assert bool(reported) == (off > 1e-3)
    if name in EXACT:
        assert off < 1e-3 and not reported


def test_what_says_nothing_of_the_shape_is_no_matter() -> None:
    config = {"model_type": "llama", "mlp_bias": False, "num_extra": 0, "expert_dim": None, "num_beams": 4}
    assert read_hf(config, name="x").keys == read_hf({"model_type": "llama"}, name="x").keys


@pytest.mark.parametrize("name", ["deepseek v3", "deepseek v2 lite", "qwen1.5 moe", "glm4_moe"])
def test_shared_experts_and_first_layers_without_experts_are_keys(name: str, tmp_path: Path) -> None:
    """What is left is multi-latent attention, and the gate of Qwen's shared experts."""
    found = read(name, tmp_path)
    assert abs(found.by_keys - found.parameters) < 0.02 * found.parameters
    assert found.keys["shared_ffn_hidden"] > 0 and not any("without experts" in line for line in found.missing)
    assert found.keys.get("dense_layers", 0) == getattr(config_of(name), "first_k_dense_replace", 0)


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
    for words in ("multi-latent attention", "671.", "40% of the FLOPs between tokens"):
        assert words in deepseek
    more = read_hf({"model_type": "deepseek_v3", "num_nextn_predict_layers": 1}, name="x").missing
    assert any(line.startswith("num_nextn_predict_layers=1") for line in more)
    # Of 128 x (192 + 128) multiply-adds a pair of tokens 2 x 7168; of 128 x (192 + 192 + 128) kept values 3 x 7168.
    (latent,) = [line for line in more if line.startswith("multi-latent attention: 128 plain heads of 56")]
    assert "35% of the FLOPs between tokens and 33% of the kept queries" in latent


def test_the_language_model_of_a_larger_one_is_read() -> None:
    inner = {"model_type": "qwen3", "num_hidden_layers": 5}
    found = read_hf({"model_type": "qwen3_vl", "text_config": inner, "vision_config": {}}, name="x")
    assert found.keys["layers"] == 5
    assert "anything but the language model of qwen3_vl" in found.missing


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "bert"}, "known are bloom"),
        ({"model_type": "llama", "num_memory_layers": 3}, "num_memory_layers may say something of the shape"),
        ({"model_type": "qwen2", "qkv_bias": True}, "qkv_bias may say something"),
        ({"model_type": "mpt", "no_bias": False}, "no_bias=False is not read, no_bias=True is"),
        ({"model_type": "opt", "word_embed_proj_dim": 512, "hidden_size": 1024}, "word_embed_proj_dim=512"),
        ({"model_type": "opt", "do_layer_norm_before": False}, "do_layer_norm_before=False"),
        ({"model_type": "gpt2", "add_cross_attention": True}, "add_cross_attention=True"),
        ({"model_type": "llama", "is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"model_type": "deepseek_v3", "moe_layer_freq": 2}, "moe_layer_freq=2"),
        ({"model_type": "mixtral", "num_experts_per_tok": 9}, "num_experts_per_tok=9 must be"),
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


def test_a_model_that_the_keys_cannot_say_is_refused_with_the_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every second layer of Llama 4 Maverick has no experts: the keys would make 784 B of its 401 B parameters."""
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["meta-llama/Llama-4-Maverick-17B-128E"]))
    assert main(["plan", f"model=hf:{tmp_path}", "cluster=dgx_a100_80g", "cluster.num_nodes=64"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "would be of another model" in err
    assert "24 of its 48 layers without experts" in err and "the keys make 784.25B" in err
    assert not read_hf(PUBLISHED["deepseek-ai/DeepSeek-V3"], name="x").is_another


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
