"""Families of Hugging Face models: the names of their keys, defaults that a config.json leaves out, what is fixed.

Source: transformers 5.24, models/<family>/configuration_<family>.py; a test compares every default with its class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

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
GPT2_NAMES = MappingProxyType(
    {
        "hidden": "n_embd",
        "layers": "n_layer",
        "heads": "n_head",
        "ffn": "n_inner",
        "vocab": "vocab_size",
        "positions": "n_positions",
        "eps": "layer_norm_epsilon",
    }
)
NEOX_NAMES = MappingProxyType(
    {name: key for name, key in LLAMA_NAMES.items() if name != "kv_heads"} | {"eps": "layer_norm_eps"}
)
LLAMA_FORM = MappingProxyType({"gated_mlp": True, "norm": "rmsnorm", "positions": "rotary", "bias": False})
# Multi-head latent attention of DeepSeek-V2 and V3, by the defaults of both configurations.
LATENT: Mapping[str, Any] = MappingProxyType(
    {"q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
)
# Words in a key that says something of the shape, and keys with such words that do not, or that are read elsewhere.
SHAPE_WORDS = ("num_", "size", "dim", "layer", "head", "expert", "rank", "window")
NOT_SHAPE = frozenset(
    {
        *("chunk_size_feed_forward", "ep_size", "head_dim", "layer_types", "max_window_layers", "mlp_only_layers"),
        *("moe_layer_freq", "num_experts", "num_experts_per_tok", "num_local_experts", "qk_head_dim"),
        *("reorder_and_upcast_attn", "scale_attn_by_inverse_layer_idx"),
        *("sliding_window", "sliding_window_pattern", "use_sliding_window"),
    }
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """One `model_type`. `norms`: of a layer. `missing`: what all its models have and the shape cannot say."""

    names: Mapping[str, str]
    defaults: Mapping[str, Any]
    fixed: Mapping[str, Any]
    theta: float = 10000.0
    norms: int = 2
    qkv_bias: bool = False
    qk_norm: bool = False
    latent: bool = False
    shared_gate: bool = False
    missing: tuple[str, ...] = ()


def _llama(sizes: tuple[int | None, ...], *, tied: bool = False, eps: float = 1e-6, **more: Any) -> Mapping[str, Any]:
    """Defaults by the order of LLAMA_NAMES, without the last."""
    keys = list(LLAMA_NAMES.values())[:-1]
    return MappingProxyType(
        dict(zip(keys, sizes, strict=True)) | {"tie_word_embeddings": tied, "rms_norm_eps": eps} | more
    )


GEMMA = ("RMSNorm by 1 + weight, embeddings scaled by √hidden",)
FOUR_NORMS = (*GEMMA, "norms after attention and MLP as well", "layers that see a window alone")
EXPERTS = MappingProxyType({**LLAMA_NAMES, "experts": "num_experts"})
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": Family(
            names=LLAMA_NAMES,
            fixed=LLAMA_FORM,
            defaults=_llama((4096, 32, 32, None, 11008, 32000, 2048), head_dim=None, attention_bias=False),
        ),
        "mistral": Family(
            names=LLAMA_NAMES,
            fixed=LLAMA_FORM,
            defaults=_llama((4096, 32, 32, 8, 14336, 32000, 131072), head_dim=None),
        ),
        "qwen2": Family(
            names=LLAMA_NAMES,
            fixed=LLAMA_FORM,
            defaults=_llama((4096, 32, 32, 32, 22016, 151936, 32768)),
            qkv_bias=True,
            missing=("biases of queries, keys and values alone",),
        ),
        "qwen3": Family(
            names=LLAMA_NAMES,
            fixed=LLAMA_FORM,
            defaults=_llama((4096, 32, 32, 32, 22016, 151936, 32768), head_dim=128, attention_bias=False),
            qk_norm=True,
            missing=("norms of queries and keys",),
        ),
        "gemma": Family(
            names=LLAMA_NAMES,
            fixed=LLAMA_FORM,
            defaults=_llama((3072, 28, 16, 16, 24576, 256000, 8192), tied=True, head_dim=256, attention_bias=False),
            missing=GEMMA,
        ),
        "gemma2": Family(
            names=LLAMA_NAMES,
            fixed=LLAMA_FORM,
            defaults=_llama((2304, 26, 8, 4, 9216, 256000, 8192), tied=True, head_dim=256, attention_bias=False),
            norms=4,
            missing=FOUR_NORMS,
        ),
        "gemma3_text": Family(
            names=LLAMA_NAMES,
            fixed=LLAMA_FORM,
            defaults=_llama((2304, 26, 8, 4, 9216, 262208, 131072), tied=True, head_dim=256, attention_bias=False),
            theta=1000000.0,
            norms=4,
            qk_norm=True,
            missing=(*FOUR_NORMS, "norms of queries and keys"),
        ),
        "gpt2": Family(
            names=GPT2_NAMES,
            fixed=MappingProxyType({"gated_mlp": False, "norm": "layernorm", "positions": "learned", "bias": True}),
            defaults=MappingProxyType(
                {
                    "n_embd": 768,
                    "n_layer": 12,
                    "n_head": 12,
                    "n_inner": None,
                    "vocab_size": 50257,
                    "n_positions": 1024,
                    "layer_norm_epsilon": 1e-5,
                    "tie_word_embeddings": True,
                }
            ),
        ),
        "gpt_neox": Family(
            names=NEOX_NAMES,
            fixed=MappingProxyType({"gated_mlp": False, "norm": "layernorm", "positions": "rotary", "bias": True}),
            defaults=MappingProxyType(
                {
                    "hidden_size": 6144,
                    "num_hidden_layers": 44,
                    "num_attention_heads": 64,
                    "intermediate_size": 24576,
                    "vocab_size": 50432,
                    "max_position_embeddings": 2048,
                    "layer_norm_eps": 1e-5,
                    "tie_word_embeddings": False,
                    "attention_bias": True,
                }
            ),
            missing=("attention and MLP side by side", "rotary positions of a part of each head"),
        ),
        "mixtral": Family(
            names=MappingProxyType({**LLAMA_NAMES, "experts": "num_local_experts"}),
            fixed=LLAMA_FORM,
            defaults=_llama(
                (4096, 32, 32, 8, 14336, 32000, 131072),
                eps=1e-5,
                head_dim=None,
                num_local_experts=8,
                num_experts_per_tok=2,
            ),
            theta=1000000.0,
        ),
        "qwen2_moe": Family(
            names=EXPERTS,
            fixed=LLAMA_FORM,
            defaults=_llama(
                (2048, 24, 16, 16, 5632, 151936, 32768),
                num_experts=60,
                num_experts_per_tok=4,
                moe_intermediate_size=1408,
                shared_expert_intermediate_size=5632,
                decoder_sparse_step=1,
            ),
            qkv_bias=True,
            shared_gate=True,
            missing=("biases of queries, keys and values alone",),
        ),
        "qwen3_moe": Family(
            names=EXPERTS,
            fixed=LLAMA_FORM,
            defaults=_llama(
                (2048, 24, 32, 4, 6144, 151936, 32768),
                attention_bias=False,
                num_experts=128,
                num_experts_per_tok=8,
                moe_intermediate_size=768,
                decoder_sparse_step=1,
            ),
            qk_norm=True,
            missing=("norms of queries and keys",),
        ),
        "deepseek_v2": Family(
            names=MappingProxyType({**LLAMA_NAMES, "experts": "n_routed_experts"}),
            fixed=LLAMA_FORM,
            defaults=_llama(
                (4096, 32, 32, None, 11008, 102400, 2048),
                attention_bias=False,
                n_routed_experts=64,
                n_shared_experts=2,
                num_experts_per_tok=None,
                moe_intermediate_size=1407,
                first_k_dense_replace=0,
                **LATENT,
            ),
            latent=True,
        ),
        "deepseek_v3": Family(
            names=MappingProxyType({**LLAMA_NAMES, "experts": "n_routed_experts"}),
            fixed=LLAMA_FORM,
            defaults=_llama(
                (7168, 61, 128, 128, 18432, 129280, 4096),
                attention_bias=False,
                n_routed_experts=256,
                n_shared_experts=1,
                num_experts_per_tok=8,
                moe_intermediate_size=2048,
                first_k_dense_replace=3,
                **LATENT,
            ),
            latent=True,
        ),
    }
)
