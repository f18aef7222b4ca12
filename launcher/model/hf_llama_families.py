"""Families of Hugging Face models like Llama: their keys, defaults that a config.json leaves out, what is fixed.

Source: transformers 5.24, models/<family>/configuration_<family>.py; a test compares every default with its class.
InternLM2 and ChatGLM ship code of their own: internlm/internlm2-7b, configuration_internlm2.py; zai-org/glm-4-9b-chat,
configuration_chatglm.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from launcher.model.hf_shape import Config, Family, HfShape

# Our names of what is read → keys of a config.json.
LLAMA_NAMES = MappingProxyType(
    {
        "hidden": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
        "ffn": "intermediate_size",
        "vocab": "vocab_size",
        "positions": "max_position_embeddings",
        "eps": "rms_norm_eps",
    }
)
LAYER_NORM = MappingProxyType({**LLAMA_NAMES, "eps": "layer_norm_eps"})
CHATGLM_NAMES = MappingProxyType(
    {
        "hidden": "hidden_size",
        "layers": "num_layers",
        "heads": "num_attention_heads",
        "kv_heads": "multi_query_group_num",
        "ffn": "ffn_hidden_size",
        "vocab": "padded_vocab_size",
        "positions": "seq_length",
        "eps": "layernorm_epsilon",
    }
)
LLAMA_FORM = MappingProxyType({"gated_mlp": True, "norm": "rmsnorm", "positions": "rotary"})
LAYER_NORM_FORM = MappingProxyType({**LLAMA_FORM, "norm": "layernorm"})
ATTENTION_BIAS = ("attention_bias", "attention_bias", False)
WITH_MLP_BIAS = ("attention_bias", "attention_bias", "mlp_bias")
QKV_BIAS = (True, False, False)
GEMMA = ("RMSNorm by 1 + weight, embeddings scaled by √hidden",)
FOUR_NORMS = (*GEMMA, "norms after attention and MLP as well", "layers that see a window alone")
QK_NORMS = ("norms of queries and keys",)
PART_ROTARY = "rotary positions of a part of each head"
SIDE_BY_SIDE = "attention and MLP side by side"


def _llama(sizes: tuple[int | None, ...], *, tied: bool = False, eps: float | None = 1e-6, **more: Any) -> Config:
    """Defaults by the order of LLAMA_NAMES, without the last."""
    keys = list(LLAMA_NAMES.values())[:-1]
    norm = {} if eps is None else {"rms_norm_eps": eps}
    return MappingProxyType(dict(zip(keys, sizes, strict=True)) | {"tie_word_embeddings": tied} | norm | more)


def like_llama(sizes: tuple[int | None, ...], **said: Any) -> Family:
    """A family with Llama's form; keys of `Family` are its own, all others are defaults."""
    own = {key: said.pop(key) for key in list(said) if key in Family.__dataclass_fields__}
    return Family(**({"names": LLAMA_NAMES, "fixed": LLAMA_FORM} | own), defaults=_llama(sizes, **said))


def _chatglm(config: Config, shape: HfShape) -> HfShape:
    """Groups of keys and values where it says so."""
    head_dim = config.get("kv_channels") or shape.head_dim
    grouped = config.get("multi_query_attention")
    return replace(shape, kv_heads=shape.kv_heads if grouped else shape.heads, head_dim=head_dim)


def _parallel(config: Config, shape: HfShape) -> HfShape:
    """StableLM with attention and MLP side by side has one norm for both."""
    return replace(shape, norms=1) if config.get("use_parallel_residual") else shape


LLAMA_LIKE: Mapping[str, Family] = {
    "llama": like_llama(
        (4096, 32, 32, None, 11008, 32000, 2048),
        biases=WITH_MLP_BIAS,
        head_dim=None,
        attention_bias=False,
        mlp_bias=False,
    ),
    "mistral": like_llama((4096, 32, 32, 8, 14336, 32000, 131072), head_dim=None),
    "ministral": like_llama((4096, 32, 32, 8, 14336, 32000, 131072), head_dim=None),
    "ministral3": like_llama((4096, 34, 32, 8, 14336, 131072, 262144), theta=1e6, eps=1e-5, head_dim=128),
    "qwen2": like_llama(
        (4096, 32, 32, 32, 22016, 151936, 32768),
        biases=QKV_BIAS,
    ),
    "qwen3": like_llama(
        (4096, 32, 32, 32, 22016, 151936, 32768),
        biases=ATTENTION_BIAS,
        qk_norm=True,
        missing=QK_NORMS,
        head_dim=128,
        attention_bias=False,
    ),
    "gemma": like_llama(
        (3072, 28, 16, 16, 24576, 256000, 8192),
        biases=ATTENTION_BIAS,
        missing=GEMMA,
        tied=True,
        head_dim=256,
        attention_bias=False,
    ),
    "gemma2": like_llama(
        (2304, 26, 8, 4, 9216, 256000, 8192),
        biases=ATTENTION_BIAS,
        norms=4,
        missing=FOUR_NORMS,
        tied=True,
        head_dim=256,
        attention_bias=False,
    ),
    "gemma3_text": like_llama(
        (2304, 26, 8, 4, 9216, 262208, 131072),
        biases=ATTENTION_BIAS,
        theta=1000000.0,
        norms=4,
        qk_norm=True,
        missing=(*FOUR_NORMS, *QK_NORMS),
        tied=True,
        head_dim=256,
        attention_bias=False,
    ),
    "phi3": like_llama((3072, 32, 32, None, 8192, 32064, 4096), eps=1e-5),
    "granite": like_llama(
        (4096, 32, 32, None, 11008, 32000, 2048), biases=WITH_MLP_BIAS, attention_bias=False, mlp_bias=False
    ),
    "smollm3": like_llama(
        (2048, 36, 16, 4, 11008, 128256, 32768),
        theta=2000000.0,
        biases=WITH_MLP_BIAS,
        missing=("layers without positions",),
        tied=True,
        attention_bias=False,
        mlp_bias=False,
    ),
    "olmo": like_llama(
        (4096, 32, 32, None, 11008, 50304, 2048),
        names=LAYER_NORM,
        fixed=LAYER_NORM_FORM,
        assumed={"layer_norm_eps": 1e-5},
        norm_vectors=0,
        biases=ATTENTION_BIAS,
        missing=("norms without parameters",),
        eps=None,
        attention_bias=False,
    ),
    "olmo2": like_llama(
        (4096, 32, 32, None, 11008, 50304, 2048),
        biases=ATTENTION_BIAS,
        qk_norm=True,
        wide_qk_norm=True,
        missing=QK_NORMS,
        eps=1e-5,
        attention_bias=False,
    ),
    "stablelm": like_llama(
        (2560, 32, 32, 32, 6912, 50304, 4096),
        names=LAYER_NORM,
        fixed=LAYER_NORM_FORM,
        biases=("use_qkv_bias", False, False),
        qk_norm="qk_layernorm",
        wide_qk_norm=True,
        special=_parallel,
        missing=(PART_ROTARY,),
        eps=None,
        layer_norm_eps=1e-5,
        use_qkv_bias=False,
        qk_layernorm=False,
    ),
    "cohere": like_llama(
        (8192, 40, 64, None, 22528, 256000, 8192),
        names=LAYER_NORM,
        fixed=LAYER_NORM_FORM,
        theta=500000.0,
        norms=1,
        norm_vectors=1,
        biases=ATTENTION_BIAS,
        qk_norm="use_qk_norm",
        wide_qk_norm=True,
        missing=(SIDE_BY_SIDE,),
        tied=True,
        eps=None,
        layer_norm_eps=1e-5,
        use_qk_norm=False,
        attention_bias=False,
    ),
    "cohere2": like_llama(
        (8192, 40, 64, None, 22528, 256000, 8192),
        names=LAYER_NORM,
        fixed=LAYER_NORM_FORM,
        norms=1,
        norm_vectors=1,
        biases=ATTENTION_BIAS,
        missing=(SIDE_BY_SIDE, "layers that see a window alone"),
        tied=True,
        eps=None,
        layer_norm_eps=1e-5,
        head_dim=128,
        attention_bias=False,
    ),
    "glm": like_llama(
        (4096, 40, 32, 2, 13696, 151552, 131072),
        biases=("attention_bias", False, False),
        missing=(PART_ROTARY,),
        eps=1.5625e-07,
        head_dim=128,
        attention_bias=True,
    ),
    "glm4": like_llama(
        (4096, 40, 32, 2, 13696, 151552, 131072),
        biases=("attention_bias", False, False),
        norms=4,
        missing=(PART_ROTARY, "norms after attention and MLP as well"),
        eps=1.5625e-07,
        head_dim=128,
        attention_bias=True,
    ),
    "internlm2": like_llama((4096, 32, 32, None, 11008, 103168, 2048), biases=("bias", "bias", False), bias=True),
    "chatglm": Family(
        names=CHATGLM_NAMES,
        fixed=LLAMA_FORM,
        biases=("add_qkv_bias", "add_bias_linear", "add_bias_linear"),
        special=_chatglm,
        only={"rmsnorm": True, "vocab_size": "padded_vocab_size"},
        missing=(PART_ROTARY,),
        defaults=MappingProxyType(
            {
                "hidden_size": 4096,
                "num_layers": 28,
                "num_attention_heads": 32,
                "multi_query_group_num": 1,
                "ffn_hidden_size": 13696,
                "padded_vocab_size": 65024,
                "seq_length": 2048,
                "layernorm_epsilon": 1e-5,
                "add_qkv_bias": False,
                "add_bias_linear": False,
                "tie_word_embeddings": False,
            }
        ),
    ),
}
