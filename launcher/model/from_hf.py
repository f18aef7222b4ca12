"""A Hugging Face config.json as the keys of `model.*`, with what those keys cannot say. Pure: data in, data out.

Names and defaults: transformers 5.24, models/*/configuration_*.py; a config.json leaves defaults out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from launcher.errors import InputError
from launcher.model.hf_families import FAMILIES
from launcher.model.hf_parameters import parameters
from launcher.model.hf_shape import Config, Family, HfShape
from launcher.model.hf_words import unknown
from launcher.model.shape import Model
from launcher.text import in_brief

USUAL_SEQ_LEN = 8192  # what is trained at unless the user says otherwise, where positions have no table of weights
MOST, MOST_LAYERS, LARGEST = 10**9, 10**5, 1e30
DIFFERENT = 1e-3  # of the parameters: smaller differences are not reported
ANOTHER = 0.1  # of the parameters: a larger difference is another model
LATENT = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
Number = Callable[..., int]


@dataclass(frozen=True)
class HfModel:
    """The result: keys of `model.*`, the model's own parameter count, and what the keys cannot express.

    `by_keys`: the parameters that the keys make.
    """

    keys: Mapping[str, Any]
    parameters: int
    missing: tuple[str, ...]
    by_keys: int

    @property
    def is_another(self) -> bool:
        """Whether the keys make so different a model that no estimate of it is one of this."""
        return abs(self.by_keys - self.parameters) > ANOTHER * self.parameters


def read_hf(config: Config, *, name: str) -> HfModel:
    """The model of a config.json; raises InputError for a family that is not known and for keys that are not."""
    config, wrapped = _text_part(config)
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        raise InputError(
            f"model_type={in_brief(kind)} is not a family that is read: known are {', '.join(sorted(FAMILIES))}; "
            "give the shape with model=gpt and its keys"
        )
    family = FAMILIES[kind]
    shape = _shape(family, config)
    keys = _keys(family, shape, name=name)
    model = Model(**keys)
    counted, missing = parameters(family, shape), [*wrapped, *_missing(family, shape), *_other(family, config)]
    if abs(model.params - counted) > DIFFERENT * counted:
        missing.append(f"all of its {counted / 1e9:.2f}B parameters: the keys make {model.params / 1e9:.2f}B of it")
    return HfModel(keys, counted, tuple(missing), model.params)


def _text_part(config: Config) -> tuple[Config, list[str]]:
    """The language model inside a model of several kinds of input."""
    inner = config.get("text_config", config.get("llm_config"))
    if not isinstance(inner, Mapping):
        return config, []
    outer = {key: config[key] for key in ("tie_word_embeddings",) if key in config}
    return {**outer, **inner}, [f"anything but the language model of {config.get('model_type')}"]


def _shape(family: Family, config: Config) -> HfShape:
    problems: list[str] = []

    def number(key: str, *, least: int = 0, most: int = MOST) -> int:
        value = family.value(config, key)
        value = 0 if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            problems.append(f"{key}={in_brief(repr(value))} must be a whole number from {least} to {most:,}")
            return max(1, least)
        return value

    shape = _read_shape(family, config, number)
    problems += _unread(family, config)
    if problems:
        raise InputError([f"config.json: {problem}" for problem in problems])
    return family.special(config, shape) if family.special else shape


def _unread(family: Family, config: Config) -> Iterator[str]:
    """Keys that change the parameters in a way that is not read, and those that may."""
    for key, wanted in family.only.items():
        wanted = config.get(wanted) if isinstance(wanted, str) else wanted
        if config.get(key) not in (None, wanted):
            yield f"{key}={in_brief(repr(config[key]))} is not read, {key}={wanted} is: give the shape with model=gpt"
    if config.get("is_encoder_decoder"):
        yield "is_encoder_decoder=true: decoders alone are read, give the shape with model=gpt and its keys"
    if keys := unknown(family, config, also=LATENT):
        named = f"{', '.join(keys[:12])}{' …' if len(keys) > 12 else ''}"
        yield (
            f"{named} may say something of the shape and is not read for {config.get('model_type')}: take it out of "
            "a copy of the file if it does not, or give the shape with model=gpt and its keys"
        )


def _read_shape(family: Family, config: Config, number: Number) -> HfShape:
    keys = family.names
    hidden, heads = number(keys["hidden"], least=1), number(keys["heads"], least=1)
    experts = number(keys["experts"]) if "experts" in keys else 0
    ffn = number(keys["ffn"]) or 4 * hidden
    qkv_bias, out_bias, mlp_bias = (family.says(config, bias) for bias in family.biases)
    return HfShape(
        hidden=hidden,
        layers=number(keys["layers"], least=1, most=MOST_LAYERS),
        heads=heads,
        kv_heads=number(keys["kv_heads"]) or heads if "kv_heads" in keys else heads,
        head_dim=number("head_dim") or max(1, hidden // heads),
        ffn=ffn,
        vocab=number(keys["vocab"], least=1),
        positions=number(keys["positions"], least=1),
        tied=bool(family.value(config, "tie_word_embeddings")),
        eps=_real(config.get(keys["eps"]), family.value({}, keys["eps"])),
        theta=_theta(family, config),
        norms=family.norms,
        qkv_bias=qkv_bias,
        out_bias=out_bias,
        mlp_bias=mlp_bias,
        head_bias=family.says(config, family.head_bias),
        qk_norm=family.says(config, family.qk_norm),
        **(_experts(family, config, number, experts=experts, ffn=ffn) if experts else {}),
        latent=tuple(number(key) for key in LATENT) if family.latent else (),
    )


def _experts(family: Family, config: Config, number: Number, *, experts: int, ffn: int) -> dict[str, int]:
    return {
        "experts": experts,
        "experts_per_token": number("num_experts_per_tok", most=experts),
        "expert_ffn": number("moe_intermediate_size") or ffn,
        "shared_ffn": _shared(family, number),
        **_dense_layers(config, number),
    }


def _shared(family: Family, number: Number) -> int:
    """Width of the experts that every token visits."""
    if "shared_expert_intermediate_size" in family.defaults:
        return number("shared_expert_intermediate_size")
    return number("n_shared_experts") * number("moe_intermediate_size") if "n_shared_experts" in family.defaults else 0


def _dense_layers(config: Config, number: Number) -> dict[str, int]:
    """Layers with an MLP in place of experts: the first ones, those named, those between sparse ones."""
    layers, step = number("num_hidden_layers", most=MOST_LAYERS), number("decoder_sparse_step") or 1
    listed = config.get("mlp_only_layers")
    named = listed if isinstance(listed, list) else ()
    sparse = [layer for layer in range(layers) if layer not in named and (layer + 1) % step == 0]
    first = number("first_k_dense_replace", most=layers)
    return {
        "dense_layers": min(layers, first + layers - len(sparse)),
        "first_dense_layers": first or (sparse[0] if sparse and sparse[0] == layers - len(sparse) else 0),
    }


def _theta(family: Family, config: Config) -> float:
    """Base of the rotary angles: transformers 5 has it in rope_parameters, before it was a key of its own."""
    found: Any = config.get("rope_parameters") or {}
    found = found.get("full_attention", found) if isinstance(found, Mapping) else {}
    value = found.get("rope_theta", config.get("rope_theta", config.get("rotary_emb_base", family.theta)))
    return max(1.0, _real(value, family.theta))


def _real(value: Any, default: float) -> float:
    """A number of a sensible size, or the default."""
    return float(value) if isinstance(value, int | float) and -LARGEST < value < LARGEST else default


def _keys(family: Family, shape: HfShape, *, name: str) -> dict[str, Any]:
    learned = family.fixed["positions"] == "learned"
    return {
        "name": name,
        "hidden": shape.hidden,
        "layers": shape.layers,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        **({"head_dim": shape.head_dim} if shape.head_dim * shape.heads != shape.hidden else {}),
        "ffn_hidden": shape.expert_ffn or shape.ffn,
        "vocab": shape.vocab,
        "seq_len": shape.positions if learned else min(shape.positions, USUAL_SEQ_LEN),
        "tied_embeddings": shape.tied,
        "num_experts": shape.experts,
        "experts_per_token": shape.experts_per_token,
        "shared_ffn_hidden": shape.shared_ffn,
        **({"dense_layers": shape.first_dense_layers, "dense_ffn_hidden": shape.ffn} if _dense_first(shape) else {}),
        "rope_theta": shape.theta,
        "norm_eps": shape.eps,
        **family.fixed,
        "bias": shape.qkv_bias and shape.out_bias and shape.mlp_bias,
    }


def _dense_first(shape: HfShape) -> bool:
    """Whether all layers without experts are the first ones, and there are others."""
    return 0 < shape.first_dense_layers == shape.dense_layers < shape.layers


def _missing(family: Family, shape: HfShape) -> Iterator[str]:
    if family.latent:
        yield _latent_as_plain(shape)
    if shape.dense_layers and not _dense_first(shape):
        yield f"{shape.dense_layers} of its {shape.layers} layers without experts: all are counted with them"
    if biased := _biased(shape):
        yield f"biases of {' and '.join(biased)} alone"
    yield from family.missing
    if family.fixed["positions"] == "rotary" and shape.positions > USUAL_SEQ_LEN:
        yield f"how long sequences are: {USUAL_SEQ_LEN:,} tokens, of at most {shape.positions:,}, set model.seq_len"


def _latent_as_plain(shape: HfShape) -> str:
    """Say how much of multi-latent attention its plain heads stand for, between tokens and in what is kept."""
    _, _, plain, rotary, value = shape.latent
    wide = plain + rotary
    flops, kept = 2 * shape.head_dim / (wide + value), 3 * shape.head_dim / (2 * wide + value)
    return (
        f"multi-latent attention: {shape.heads} plain heads of {shape.head_dim} are counted for queries and keys of "
        f"{wide} and values of {value}, with {flops:.0%} of the FLOPs between tokens and {kept:.0%} of the kept "
        "queries, keys and values"
    )


def _biased(shape: HfShape) -> list[str]:
    """Products with a bias, where others have none."""
    flags = {"queries, keys and values": shape.qkv_bias, "the attention's output": shape.out_bias,
             "the MLP": shape.mlp_bias}  # fmt: skip
    found = [name for name, on in flags.items() if on]
    return found if len(found) < len(flags) else []


def _other(family: Family, config: Config) -> Iterator[str]:
    """What costs time, or is trained, in another way than is counted."""
    scaled = config.get("rope_scaling") or config.get("rope_parameters")
    kind = scaled.get("rope_type", scaled.get("type", "default")) if isinstance(scaled, Mapping) else "default"
    if kind != "default":
        yield f"rotary positions of type {kind}: they cost what plain ones do"
    if config.get("num_nextn_predict_layers"):
        yield f"num_nextn_predict_layers={config['num_nextn_predict_layers']}: layers that predict further tokens"
    for key in ("sliding_window", "layer_types"):
        if config.get(key) and config.get("use_sliding_window", True) and not family.missing:
            yield f"{key}: every layer is counted with full attention"
