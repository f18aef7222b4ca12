"""A script that starts Megatron-LM: its flags as our keys. Flags as in `launcher.export.megatron`, older ones too."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher.errors import InputError
from launcher.export.megatron import FSDP_STRATEGY, PIPELINE_FIRST, SOFTMAX
from launcher.export.megatron_habits import megatron
from launcher.export.megatron_known import FREE, NUMBERS, TELLING, is_known
from launcher.export.reading import Flags, Reading, allocator, assigned, command_in, first, flags_in
from launcher.planner.habits import Setup, habits_in
from launcher.text import whole_number

LAYERS = r"\[[01](?:,[01])*\](?:\*\d{1,4})?"  # of --moe-layer-freq
LAYERS_PARTS = r"\[([01,]+)\](?:\*(\d+))?"
SHAPE = ("model.layers", "model.hidden", "model.heads")  # without these the file gives no model


def read_megatron(file: Path, text: str) -> Reading:
    reading = Reading("megatron")
    words = command_in(text, known, reading)
    flags = flags_in(words)
    take_flags(flags, reading)
    _habits(flags, text, reading)
    unread = [name for name in TELLING if name in flags]
    reading.unread += [f"{name} {' '.join(flags[name])}".strip() for name in unread]
    if "--fp8-format" in flags:  # not for every cluster
        reading.unread.append(f"--fp8-format {' '.join(flags['--fp8-format'])}: set train.gemm_dtype=fp8")
    _open(words, reading)
    return reading


def take_flags(flags: Flags, reading: Reading) -> None:
    """Degrees, stages, sharding, recomputation and the model's shape."""
    for name, key in NUMBERS.items():
        reading.take_number(key, flags, name)
    for part in (_how, _stages, _sharding, _recompute, _shape):
        part(flags, reading)


def known(word: str) -> bool:
    """Whether a word is a flag of Megatron-LM's layout or model."""
    return word.partition("=")[0] in NUMBERS


def _open(words: list[str], reading: Reading) -> None:
    """Flags of the program that are not known, and those that the script leaves to the outside."""
    script = next((place for place, word in enumerate(words) if word.endswith(".py")), -1)
    own = flags_in(words[script + 1 :])
    outside = {name: " ".join(said) for name, said in own.items() if "$" in " ".join(said)}
    named = {name: said for name, said in outside.items() if name in TELLING or not is_known(name)}
    reading.unread += sorted(f"{name} {said}" for name, said in named.items() if name not in TELLING)
    inside = {said for name, said in outside.items() if name in NUMBERS or name in named or name.startswith(FREE)}
    reading.unread += sorted({word for word in words[script + 1 :] if word.startswith("$")} - inside)
    strange = sorted(name for name in own if not is_known(name))
    reading.unread += [f"flags that are not known here: {' '.join(strange)}"] if strange else []


def _how(flags: Flags, reading: Reading) -> None:
    reading.take("stack", "megatron_lm")
    reading.take("layout.sequence_parallel", "--sequence-parallel" in flags)
    dtype = next((dtype for dtype in ("bf16", "fp16") if f"--{dtype}" in flags), "fp32")
    reading.take("train.dtype", dtype)
    if "--use-tp-pp-dp-mapping" in flags:
        reading.take("layout.axis_order", PIPELINE_FIRST)
    if first(flags, "--optimizer") == "sgd":
        reading.take("train.optimizer", "sgd")


def _stages(flags: Flags, reading: Reading) -> None:
    keys = reading.keys
    layers, pp = keys.get("model.layers"), keys.get("layout.pp", 1)
    each = reading.number(flags, "--num-layers-per-virtual-pipeline-stage")
    if each and layers and layers % (pp * each) == 0 and layers // (pp * each) > 1:
        reading.take("layout.virtual_stages", layers // (pp * each))
    ends = [reading.number(flags, f"--decoder-{end}-pipeline-num-layers") for end in ("first", "last")]
    if any(ends) and layers and pp > 1:
        reading.take("layout.layer_split", _with_ends(layers, pp, ends))
    letters = first(flags, "--pipeline-model-parallel-layout")
    if letters and "(" not in letters and "*" not in letters:
        split = tuple(stage.count("t") for stage in letters.split("|"))
        reading.take("layout.layer_split", split)
        if len(split) > pp:
            reading.take("layout.virtual_stages", len(split) // pp)
    elif letters:
        reading.unread.append(f"--pipeline-model-parallel-layout {letters}: write it without * and brackets")


def _with_ends(layers: int, pp: int, ends: list[int | None]) -> tuple[int, ...] | None:
    """Layers of each stage where the first, the last or both are said and the others are equal."""
    said = [end for end in ends if end]
    middle = pp - len(said)
    rest = layers - sum(said)
    if rest < 0 or (rest % middle if middle else rest):
        raise InputError(f"{layers} layers do not divide over {pp} stages with {said} at the ends")
    between = [rest // middle] * middle if middle else []
    return (*([ends[0]] if ends[0] else []), *between, *([ends[1]] if ends[1] else []))


def _sharding(flags: Flags, reading: Reading) -> None:
    stage = 1 if "--use-distributed-optimizer" in flags else 0
    if "--use-megatron-fsdp" in flags:
        strategies = {name: stage for stage, name in FSDP_STRATEGY.items()} | {"optim": 1, "no_shard": 0}
        stage = strategies.get(first(flags, "--data-parallel-sharding-strategy") or "optim_grads_params", 3)
    if "--use-torch-fsdp2" in flags:
        stage = 2 if "--torch-fsdp2-no-reshard-after-forward" in flags else 3
    if "--deepspeed" in flags:  # Megatron-DeepSpeed
        stage = whole_number(first(flags, "--zero-stage")) or 0
        reading.take("stack", "megatron_deepspeed")
        if config := first(flags, "--deepspeed_config", "--deepspeed-config"):
            reading.unread.append(f"--deepspeed_config {config}: its flags alone are read, with --zero-stage")
    reading.take("layout.zero_stage", stage)
    if "--optimizer-cpu-offload" in flags:
        reading.take("layout.offload_optimizer", True)


def _habits(flags: Flags, text: str, reading: Reading) -> None:
    """Habits of its software, and the kernel of attention."""
    keys = reading.keys
    setup = Setup(
        dtype=keys["train.dtype"],
        zero_stage=keys["layout.zero_stage"],
        sequence_parallel=keys["layout.sequence_parallel"],
        gated="--swiglu" in flags,
        bias="--disable-bias-linear" not in flags,
    )
    table = dict(megatron(setup))
    if "--use-torch-fsdp2" in flags:  # it always overlaps
        del table["overlap_gathers"], table["overlap_grad_reduce"]
    for key, value in habits_in(table, {**dict.fromkeys(flags, True), **allocator(text)}).items():
        reading.take(f"stack.{key}", value)
    plain = "--no-masked-softmax-fusion" in flags or assigned(text, SOFTMAX) == "0"
    local = first(flags, "--transformer-impl") == "local"
    flash = first(flags, "--attention-backend") == "flash" or "--use-flash-attn" in flags
    if not flash and (local or first(flags, "--attention-backend") in ("unfused", "local")):
        reading.take("train.attention", "math" if plain else "fused")
    if local and first(flags, "--normalization") == "RMSNorm":
        reading.take("stack.fused_norm", False)
    if "--overlap-param-gather" in flags and setup.zero_stage < 3:
        reading.unread.append("--overlap-param-gather: weights gathered after the step are counted in full")


# Earlier Megatron-LM's, and Megatron-DeepSpeed's.
WHOLE = ("--checkpoint-activations", "--activations-checkpoint-method", "--deepspeed-activation-checkpointing")


def _recompute(flags: Flags, reading: Reading) -> None:
    earlier = any(name in flags for name in WHOLE)
    form = first(flags, "--recompute-granularity") or (
        "selective" if "--recompute-activations" in flags else "full" if earlier else "none"
    )
    reading.take("layout.recompute", form if form in ("none", "selective", "full") else None)
    layers, pp = reading.keys.get("model.layers"), reading.keys.get("layout.pp", 1)
    some = reading.number(flags, "--recompute-num-layers")
    if form == "full" and first(flags, "--recompute-method") == "block" and some and layers:
        stages = pp * reading.keys.get("layout.virtual_stages", 1)
        reading.take("layout.recompute_fraction", min(1.0, some * stages / layers))


def _shape(flags: Flags, reading: Reading) -> None:
    keys = reading.keys
    if not all(key in keys for key in SHAPE):
        for key in [key for key in keys if key.startswith("model.")]:
            del keys[key]
        reading.unread.append("the model's shape (--num-layers, --hidden-size, --num-attention-heads): give model=NAME")
        return
    rotary = "--use-rotary-position-embeddings" in flags or first(flags, "--position-embedding-type") == "rope"
    said: dict[str, Callable[[], Any]] = {
        "model": lambda: "gpt",
        "model.gated_mlp": lambda: "--swiglu" in flags,
        "model.norm": lambda: "rmsnorm" if first(flags, "--normalization") == "RMSNorm" else "layernorm",
        "model.positions": lambda: "rotary" if rotary else "learned",
        "model.bias": lambda: "--disable-bias-linear" not in flags,
        "model.tied_embeddings": lambda: "--untie-embeddings-and-output-weights" not in flags,
        "model.vocab": lambda: reading.number(flags, "--padded-vocab-size") or reading.number(flags, "--vocab-size"),
    }
    if "model.num_experts" in keys:
        _take_experts(flags, reading)
    for key, value in said.items():
        reading.take(key, value())
    if "model.vocab" not in keys:
        reading.unread.append("the vocabulary, which comes from the tokenizer: set model.vocab")
    reading.keys = {"model": keys.pop("model"), **keys}


def _take_experts(flags: Flags, reading: Reading) -> None:
    """Widths, and which layers have experts; --ffn-hidden-size is that of layers without."""
    pattern, layers = first(flags, "--moe-layer-freq"), reading.keys.get("model.layers")
    dense = _dense_layers(pattern, layers) if pattern and isinstance(layers, int) else 0
    if dense is None:
        reading.unread.append(f"--moe-layer-freq {pattern}: layers without experts that are not the first ones")
    elif dense:
        reading.take("model.dense_layers", dense)
        reading.take("model.dense_ffn_hidden", reading.keys.get("model.ffn_hidden"))
    reading.take("model.ffn_hidden", reading.number(flags, "--moe-ffn-hidden-size"))


def _dense_layers(pattern: str, layers: int) -> int | None:
    """The first layers of a pattern that have no experts, as in ([0]*3+[1]*58) or 1; None for any other pattern."""
    text = re.sub(r"[\s()]", "", pattern)
    if text == "1":
        return 0
    if not re.fullmatch(rf"{LAYERS}(?:\+{LAYERS})*", text):
        return None
    kinds = "".join(re.sub(",", "", kind) * int(times or 1) for kind, times in re.findall(LAYERS_PARTS, text))
    dense = len(kinds) - len(kinds.lstrip("0"))
    return dense if kinds == "0" * dense + "1" * (layers - dense) and dense < layers else None
