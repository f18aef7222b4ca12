"""Words of a config.json: which keys say nothing of a model's shape."""

from __future__ import annotations

from collections.abc import Iterable

from launcher.model.hf_shape import Config, Family

# Words in a key that may say something of the shape.
SHAPE_WORDS = ("num_", "size", "dim", "layer", "head", "expert", "rank", "window", "bias", "multi_query", "qk_")
# Keys with such words that do not, or that are read in another place.
NOT_SHAPE = frozenset(
    {
        *("chunk_size_feed_forward", "ep_size", "head_dim", "layer_types", "max_window_layers", "mlp_only_layers"),
        *("moe_layer_freq", "num_experts_per_tok", "qk_head_dim"),
        *("reorder_and_upcast_attn", "scale_attn_by_inverse_layer_idx", "num_nextn_predict_layers"),
        *("sliding_window", "sliding_window_pattern", "use_sliding_window", "_sliding_window_pattern", "window_size"),
        # of generation and of heads for other tasks
        *("num_beams", "num_beam_groups", "num_return_sequences", "no_repeat_ngram_size", "num_labels"),
        *("encoder_no_repeat_ngram_size", "classifier_dropout", "summary_proj_to_labels"),
        # of training, dropout and positions
        *("layerdrop", "rope_theta", "rotary_dim", "bias_dropout_fusion", "hidden_dropout", "expert_capacity"),
        *("no_rope_layers", "no_rope_layer_interval", "attention_layers", "apply_query_key_layer_scaling"),
        *("attention_softmax_in_fp32", "apply_residual_connection_post_layernorm", "post_layer_norm", "pre_seq_len"),
        *("num_ln_in_parallel_attn", "multi_query", "multi_query_attention", "masked_softmax_fusion"),
        *("original_max_position_embeddings", "query_pre_attn_scalar", "attention_chunk_size", "moe_layers"),
        *("tokenizer_class", "initializer_range", "hidden_act", "layer_norm_eps", "layer_norm_epsilon"),
        *("original_rope", "layernorm_epsilon", "skip_bias_add", "skip_bias_add_qkv", "experts_per_token"),
    }
)


def unknown(family: Family, config: Config, *, also: Iterable[str]) -> list[str]:
    """Keys that may say something of the shape and that no reader of this family knows; empty values say nothing."""
    known = {*family.defaults, *family.names.values(), *family.aliases, *family.only, *NOT_SHAPE, *also}
    return sorted(
        str(key) for key, value in config.items()
        if value and key not in known and any(word in str(key) for word in SHAPE_WORDS)
    )  # fmt: skip
