"""Families of Hugging Face models with experts, and all families by their `model_type`.

Source: transformers 5.24, models/<family>/configuration_<family>.py; a test compares every default with its class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from launcher.model.hf_llama_families import (
    ATTENTION_BIAS,
    LAYER_NORM_FORM,
    LLAMA_LIKE,
    LLAMA_NAMES,
    PART_ROTARY,
    QK_NORMS,
    WITH_MLP_BIAS,
    like_llama,
)
from launcher.model.hf_older_families import OLDER
from launcher.model.hf_shape import Config, Family, HfShape

EXPERTS = MappingProxyType({**LLAMA_NAMES, "experts": "num_experts"})
LOCAL_EXPERTS = MappingProxyType({**LLAMA_NAMES, "experts": "num_local_experts"})
ROUTED = MappingProxyType({**LLAMA_NAMES, "experts": "n_routed_experts"})
# Multi-head latent attention of DeepSeek-V2 and V3, by the defaults of both configurations.
LATENT: Config = MappingProxyType(
    {"q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
)
QK_NORM_ALIKE = "norms of queries and keys without parameters"


def _llama4(config: Config, shape: HfShape) -> HfShape:
    """`intermediate_size` is an expert's, and of the expert that every token visits; dense layers have another."""
    step, listed = config.get("interleave_moe_layer_step") or 1, config.get("moe_layers")
    sparse = len(listed) if isinstance(listed, list) else shape.layers // step
    dense = config.get("intermediate_size_mlp") or 16384
    return replace(
        shape, ffn=dense, expert_ffn=shape.ffn, shared_ffn=shape.ffn, dense_layers=max(0, shape.layers - sparse)
    )


DEEPSEEK_V3 = like_llama(
    (7168, 61, 128, 128, 18432, 129280, 4096),
    names=ROUTED,
    aliases={"num_local_experts": "n_routed_experts"},
    biases=ATTENTION_BIAS,
    latent=True,
    only={"moe_layer_freq": 1},
    attention_bias=False,
    n_routed_experts=256,
    n_shared_experts=1,
    num_experts_per_tok=8,
    moe_intermediate_size=2048,
    first_k_dense_replace=3,
    **LATENT,
)
WITH_EXPERTS: Mapping[str, Family] = {
    "mixtral": like_llama(
        (4096, 32, 32, 8, 14336, 32000, 131072),
        names=LOCAL_EXPERTS,
        aliases={"num_experts": "num_local_experts"},
        theta=1000000.0,
        eps=1e-5,
        head_dim=None,
        num_local_experts=8,
        num_experts_per_tok=2,
    ),
    "granitemoe": like_llama(
        (4096, 32, 32, None, 11008, 32000, 2048),
        names=LOCAL_EXPERTS,
        biases=ATTENTION_BIAS,
        attention_bias=False,
        num_local_experts=8,
        num_experts_per_tok=2,
    ),
    "phimoe": like_llama(
        (4096, 32, 32, 8, 6400, 32064, 131072),
        names=LOCAL_EXPERTS,
        fixed=LAYER_NORM_FORM,
        theta=1000000.0,
        biases=ATTENTION_BIAS,
        head_bias="lm_head_bias",
        eps=1e-5,
        attention_bias=False,
        lm_head_bias=False,
        num_local_experts=16,
        num_experts_per_tok=2,
    ),
    "olmoe": like_llama(
        (2048, 16, 16, None, 2048, 50304, 4096),
        names=EXPERTS,
        aliases={"num_local_experts": "num_experts"},
        biases=ATTENTION_BIAS,
        qk_norm=True,
        wide_qk_norm=True,
        missing=QK_NORMS,
        eps=1e-5,
        attention_bias=False,
        num_experts=64,
        num_experts_per_tok=8,
    ),
    "gpt_oss": like_llama(
        (2880, 36, 64, 8, 2880, 201088, 131072),
        names=LOCAL_EXPERTS,
        aliases={"num_experts": "num_local_experts"},
        theta=150000.0,
        biases=("attention_bias", "attention_bias", True),
        router_bias=True,
        sinks=True,
        missing=("attention sinks", "layers that see a window alone"),
        eps=1e-5,
        head_dim=64,
        attention_bias=True,
        num_local_experts=128,
        num_experts_per_tok=4,
    ),
    "llama4_text": like_llama(
        (5120, 48, 40, 8, 8192, 202048, 131072),
        names=LOCAL_EXPERTS,
        theta=500000.0,
        biases=ATTENTION_BIAS,
        special=_llama4,
        missing=(QK_NORM_ALIKE, "layers that see a chunk alone"),
        eps=1e-5,
        head_dim=128,
        attention_bias=False,
        intermediate_size_mlp=16384,
        interleave_moe_layer_step=1,
        use_qk_norm=True,
        num_local_experts=16,
        num_experts_per_tok=1,
    ),
    "qwen2_moe": like_llama(
        (2048, 24, 16, 16, 5632, 151936, 32768),
        names=EXPERTS,
        biases=("qkv_bias", False, False),
        shared_gate=True,
        qkv_bias=True,
        num_experts=60,
        num_experts_per_tok=4,
        moe_intermediate_size=1408,
        shared_expert_intermediate_size=5632,
        decoder_sparse_step=1,
    ),
    "qwen3_moe": like_llama(
        (2048, 24, 32, 4, 6144, 151936, 32768),
        names=LOCAL_EXPERTS,
        aliases={"num_experts": "num_local_experts"},
        biases=ATTENTION_BIAS,
        qk_norm=True,
        missing=QK_NORMS,
        attention_bias=False,
        num_local_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
        decoder_sparse_step=1,
    ),
    "glm4_moe": like_llama(
        (4096, 46, 96, 8, 10944, 151552, 131072),
        names=ROUTED,
        aliases={"num_local_experts": "n_routed_experts"},
        biases=("attention_bias", False, False),
        qk_norm="use_qk_norm",
        missing=(PART_ROTARY,),
        eps=1e-5,
        attention_bias=False,
        use_qk_norm=False,
        n_routed_experts=128,
        n_shared_experts=1,
        num_experts_per_tok=8,
        moe_intermediate_size=1408,
        first_k_dense_replace=1,
    ),
    "deepseek_v2": like_llama(
        (4096, 32, 32, None, 11008, 102400, 2048),
        names=ROUTED,
        aliases={"num_experts": "n_routed_experts"},
        biases=WITH_MLP_BIAS,
        latent=True,
        only={"moe_layer_freq": 1},
        attention_bias=False,
        mlp_bias=False,
        n_routed_experts=64,
        n_shared_experts=2,
        num_experts_per_tok=None,
        moe_intermediate_size=1407,
        first_k_dense_replace=0,
        **LATENT,
    ),
    "deepseek_v3": DEEPSEEK_V3,
    "kimi_k2": DEEPSEEK_V3,
}
FAMILIES: Mapping[str, Family] = MappingProxyType({**LLAMA_LIKE, **WITH_EXPERTS, **OLDER})
