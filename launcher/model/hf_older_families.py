"""Families of Hugging Face models like GPT: LayerNorm and an MLP without a gate.

Source: transformers 5.24, models/<family>/configuration_<family>.py; a test compares every default with its class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from launcher.model.hf_shape import Config, Family, HfShape

OURS = ("hidden", "layers", "heads", "kv_heads", "ffn", "vocab", "positions", "eps")
LEARNED = MappingProxyType({"gated_mlp": False, "norm": "layernorm", "positions": "learned"})
ROTARY = MappingProxyType({**LEARNED, "positions": "rotary"})
ALIBI = "ALiBi in place of rotary positions"
PARALLEL = ("attention and MLP side by side", "rotary positions of a part of each head")
ALL = (True, True, True)
GPT2_KEYS = ("n_embd", "n_layer", "n_head", None, "n_inner", "vocab_size", "n_positions", "layer_norm_epsilon")
USUAL = ("hidden_size", "num_hidden_layers", "num_attention_heads", None, "intermediate_size", "vocab_size",
         "max_position_embeddings", "layer_norm_eps")  # fmt: skip
GPT2_ALIASES = MappingProxyType(
    {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
    }
)


def _named(keys: tuple[str | None, ...]) -> Mapping[str, str]:
    """Our names → keys."""
    return MappingProxyType({name: key for name, key in zip(OURS, keys, strict=True) if key})


def _family(
    keys: tuple[str | None, ...], defaults: tuple[Any, ...], *, tied: bool, fixed: Config, **said: Any
) -> Family:
    """Keys and defaults by the order of OURS, `...` where transformers has no default; more defaults by name."""
    own = {key: said.pop(key) for key in list(said) if key in Family.__dataclass_fields__}
    values = {key: value for key, value in zip(keys, defaults, strict=True) if key and value is not ...}
    return Family(
        names=_named(keys),
        fixed=fixed,
        defaults=MappingProxyType({**values, "tie_word_embeddings": tied, **said}),
        **own,
    )


def _falcon(config: Config, shape: HfShape) -> HfShape:
    """One head of keys and values with multi_query; norms by the form of its layers."""
    new, parallel = config.get("new_decoder_architecture", False), config.get("parallel_attn", True)
    grouped = shape.kv_heads if new else 1 if config.get("multi_query", True) else shape.heads
    each = (config.get("num_ln_in_parallel_attn") or 2) if new else 1
    return replace(shape, kv_heads=grouped, norms=min(2, each) if parallel or new else 2)


def _bigcode(config: Config, shape: HfShape) -> HfShape:
    """One head of keys and values with multi_query."""
    return replace(shape, kv_heads=1 if config.get("multi_query", True) else shape.heads)


OLDER: Mapping[str, Family] = {
    "gpt2": _family(
        GPT2_KEYS,
        (768, 12, 12, None, None, 50257, 1024, 1e-5),
        tied=True,
        fixed=LEARNED,
        aliases=GPT2_ALIASES,
        biases=ALL,
        only={"add_cross_attention": False},
    ),
    "gpt_bigcode": _family(
        GPT2_KEYS,
        (768, 12, 12, None, None, 50257, 1024, 1e-5),
        tied=True,
        fixed=LEARNED,
        aliases=GPT2_ALIASES,
        biases=ALL,
        special=_bigcode,
        only={"add_cross_attention": False},
        num_key_value_heads=1,
    ),
    "gptj": _family(
        GPT2_KEYS,
        (4096, 28, 16, None, None, 50400, 2048, 1e-5),
        tied=False,
        fixed=ROTARY,
        aliases=GPT2_ALIASES,
        norms=1,
        biases=(False, False, True),
        head_bias=True,
        missing=PARALLEL,
    ),
    "gpt_neo": _family(
        ("hidden_size", "num_layers", "num_heads", None, "intermediate_size", "vocab_size", "max_position_embeddings",
         "layer_norm_epsilon"),
        (2048, 24, 16, None, None, 50257, 2048, 1e-5),
        tied=True,
        fixed=LEARNED,
        aliases={"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"},
        biases=(False, True, True),
        missing=("layers that see a window alone",),
    ),
    "gpt_neox": _family(
        USUAL,
        (6144, 44, 64, None, 24576, 50432, 2048, 1e-5),
        tied=False,
        fixed=ROTARY,
        biases=("attention_bias", "attention_bias", True),
        missing=PARALLEL,
        attention_bias=True,
    ),
    "phi": _family(
        (*USUAL[:3], "num_key_value_heads", *USUAL[4:]),
        (2048, 24, 32, None, 8192, 51200, 2048, 1e-5),
        tied=False,
        fixed=ROTARY,
        norms=1,
        biases=ALL,
        head_bias=True,
        qk_norm="qk_layernorm",
        missing=PARALLEL,
        qk_layernorm=False,
    ),
    "starcoder2": _family(
        (*USUAL[:3], "num_key_value_heads", *USUAL[4:7], "norm_epsilon"),
        (3072, 30, 24, 2, 12288, 49152, 4096, 1e-5),
        tied=True,
        fixed=ROTARY,
        biases=("use_bias", "use_bias", "use_bias"),
        use_bias=True,
    ),
    "opt": _family(
        (*USUAL[:3], None, "ffn_dim", *USUAL[5:]),
        (768, 12, 12, None, 3072, 50272, 2048, ...),
        tied=True,
        fixed=LEARNED,
        assumed={"layer_norm_eps": 1e-5},
        more_positions=2,
        biases=("enable_bias", "enable_bias", "enable_bias"),
        only={"do_layer_norm_before": True, "_remove_final_layer_norm": False, "layer_norm_elementwise_affine": True,
              "word_embed_proj_dim": "hidden_size"},
        enable_bias=True,
    ),
    "bloom": _family(
        ("hidden_size", "n_layer", "n_head", None, "n_inner", "vocab_size", "seq_length", "layer_norm_epsilon"),
        (64, 2, 8, None, ..., 250880, ..., 1e-5),
        tied=True,
        fixed=ROTARY,
        aliases={"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "n_embed": "hidden_size"},
        assumed={"seq_length": 2048},
        biases=ALL,
        embedding_norm=True,
        missing=(ALIBI,),
    ),
    "falcon": _family(
        (*USUAL[:3], "num_kv_heads", "ffn_hidden_size", *USUAL[5:7], "layer_norm_epsilon"),
        (4544, 32, 71, None, ..., 65024, 2048, 1e-5),
        tied=True,
        fixed=ROTARY,
        aliases={"n_embed": "hidden_size"},
        biases=("bias", "bias", "bias"),
        special=_falcon,
        missing=PARALLEL[:1],
        bias=False,
    ),
    "mpt": _family(
        ("d_model", "n_layers", "n_heads", None, "ffn_hidden_size", "vocab_size", "max_seq_len", "layer_norm_epsilon"),
        (2048, 24, 16, None, ..., 50368, 2048, 1e-5),
        tied=True,
        fixed=ROTARY,
        aliases={"hidden_size": "d_model", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"},
        norm_vectors=1,
        only={"no_bias": True, "expansion_ratio": 4},
        missing=(ALIBI,),
    ),
}  # fmt: skip
