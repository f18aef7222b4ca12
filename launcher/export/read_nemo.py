"""Configurations of NeMo and Megatron Bridge: their YAML, and overrides KEY=VALUE on a command line.

Fields: those of `launcher.export.nemo` (Megatron Bridge 067f987), and of NeMo 1 and 2 where they differ (NeMo 2.0,
examples/nlp/language_modeling/conf/megatron_gpt_config.yaml). Both train by Megatron-LM's core: a field is read as the
flag of Megatron-LM that it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.export.megatron_habits import bridge
from launcher.export.nemo import RECIPES
from launcher.export.read_megatron import take_flags
from launcher.export.reading import Reading, allocator, command_in, first, flag, flags_in
from launcher.planner.habits import Setup, flat, habits_in

OVERRIDE = re.compile(r"\+{0,2}(?P<name>(?:model|train|trainer|ddp|optimizer|dist|mixed_precision|comm_overlap)"
                      r"(?:\.[A-Za-z_]\w*)*)=(?P<value>.*)", re.DOTALL)  # fmt: skip
MIXED = re.compile(r"(?m)^\s*mixed_precision=(\S+)")
TELLING = "model.tensor_model_parallel_size", "model.pipeline_model_parallel_size", "train.global_batch_size"
# Fields → flags of Megatron-LM with a value; of two names of one the first is Megatron Bridge's.
VALUES = {
    "model.tensor_model_parallel_size": "--tensor-model-parallel-size",
    "model.pipeline_model_parallel_size": "--pipeline-model-parallel-size",
    "model.context_parallel_size": "--context-parallel-size",
    "model.expert_model_parallel_size": "--expert-model-parallel-size",
    "model.virtual_pipeline_model_parallel_size": "--num-virtual-stages-per-pipeline-rank",
    "train.micro_batch_size": "--micro-batch-size",
    "model.micro_batch_size": "--micro-batch-size",
    "train.global_batch_size": "--global-batch-size",
    "model.global_batch_size": "--global-batch-size",
    "model.num_layers": "--num-layers",
    "model.hidden_size": "--hidden-size",
    "model.ffn_hidden_size": "--ffn-hidden-size",
    "model.num_attention_heads": "--num-attention-heads",
    "model.num_query_groups": "--num-query-groups",
    "model.kv_channels": "--kv-channels",
    "model.seq_length": "--seq-length",
    "model.encoder_seq_length": "--seq-length",
    "model.rotary_base": "--rotary-base",
    "model.num_moe_experts": "--num-experts",
    "model.moe_router_topk": "--moe-router-topk",
    "model.moe_ffn_hidden_size": "--moe-ffn-hidden-size",
    "model.moe_shared_expert_intermediate_size": "--moe-shared-expert-intermediate-size",
    "model.moe_layer_freq": "--moe-layer-freq",
    "model.vocab_size": "--vocab-size",
    "model.recompute_granularity": "--recompute-granularity",
    "model.activations_checkpoint_granularity": "--recompute-granularity",
    "model.recompute_method": "--recompute-method",
    "model.activations_checkpoint_method": "--recompute-method",
    "model.recompute_num_layers": "--recompute-num-layers",
    "model.activations_checkpoint_num_layers": "--recompute-num-layers",
    "model.num_layers_in_first_pipeline_stage": "--decoder-first-pipeline-num-layers",
    "model.num_layers_in_last_pipeline_stage": "--decoder-last-pipeline-num-layers",
    "model.pipeline_model_parallel_layout": "--pipeline-model-parallel-layout",
    "ddp.data_parallel_sharding_strategy": "--data-parallel-sharding-strategy",
}
SWITCHES = {
    "model.sequence_parallel": "--sequence-parallel",
    "model.gated_linear_unit": "--swiglu",
    "dist.use_tp_pp_dp_mapping": "--use-tp-pp-dp-mapping",
    "ddp.use_distributed_optimizer": "--use-distributed-optimizer",
    "optimizer.use_distributed_optimizer": "--use-distributed-optimizer",
    "ddp.use_megatron_fsdp": "--use-megatron-fsdp",
    "optimizer.optimizer_cpu_offload": "--optimizer-cpu-offload",
    "model.bf16": "--bf16",
    "model.fp16": "--fp16",
}
# Fields that are on by themselves: the flag says that one is off.
OFF = {
    "model.add_bias_linear": "--disable-bias-linear",
    "model.bias": "--disable-bias-linear",
    "model.share_embeddings_and_output_weights": "--untie-embeddings-and-output-weights",
}
DTYPES = ("bf16", "fp16")
PRECISIONS = ("mixed_precision", "trainer.precision", "model.precision", "trainer.plugins.precision")
ZERO = {"ddp.use_distributed_optimizer", "optimizer.use_distributed_optimizer", "model.optim.name"}
GATED = ("swiglu", "fast-swiglu", "geglu", "fast-geglu", "reglu", "fast-reglu")
UNREAD = ("ddp.num_distributed_optimizer_instances", "model.multi_latent_attention",
          "model.cp_comm_type",
          "model.mtp_num_layers", "model.window_size", "model.fp8", "peft", "model.peft.peft_scheme",
          "model.tp_comm_overlap_cfg", "model.cpu_offloading")  # fmt: skip


def is_config(data: Mapping[str, Any]) -> bool:
    """Whether a file of settings is one of these."""
    return any(name in flat(data) for name in TELLING)


def read_config(data: Mapping[str, Any]) -> Reading:
    """A YAML file: of ConfigContainer.to_yaml, or NeMo's."""
    reading = Reading("nemo")
    _take(flat(data), reading)
    _leave_to_base(flat(data), reading)
    return reading


def known(word: str) -> bool:
    """Whether a word is an override of the layout."""
    match = OVERRIDE.fullmatch(word)
    return bool(match) and match["name"] in VALUES  # type: ignore[index]


def read_overrides(file: Path, text: str) -> Reading:
    """A script, or a list, of overrides."""
    reading = Reading("nemo")
    words = command_in(text, known, reading)
    found = {match["name"]: _value(match["value"]) for word in words if (match := OVERRIDE.fullmatch(word))}
    if said := MIXED.findall(text):  # a name without dots is a variable to a shell
        found.setdefault("mixed_precision", _value(said[-1]))
    _take(found, reading)
    _leave_to_base(found, reading)
    recipe = first(flags_in(words), "--recipe")
    named = next((name for name, of in RECIPES.items() if of == recipe), None)
    if named:
        reading.keys = {"model": named, **{key: value for key, value in reading.keys.items() if key != "model"}}
        reading.unread = [line for line in reading.unread if not line.startswith("the model's shape")]
    if base := first(flags_in(words), "--config-name", "--config-path"):
        reading.unread.append(f"what {base} says: overrides alone are read, give from= that YAML for the rest")
    if segments := allocator(text):
        table = {"expandable_segments": bridge(Setup(), overlap_group=False)["expandable_segments"]}
        for key, value in habits_in(table, segments).items():
            reading.take(f"stack.{key}", value)
    return reading


def _leave_to_base(found: Mapping[str, Any], reading: Reading) -> None:
    """What no override says is the recipe's: nothing of it is pinned."""
    said = {
        "train.dtype": any(name.startswith((*PRECISIONS, "model.bf16", "model.fp16")) for name in found),
        "layout.zero_stage": bool(ZERO & set(found)),
        "layout.recompute": any("recompute" in name or "checkpoint_granularity" in name for name in found),
        "layout.sequence_parallel": "model.sequence_parallel" in found,
    }
    left = [key for key, is_said in said.items() if not is_said and reading.keys.pop(key, None) is not None]
    if "layout.zero_stage" in left:
        reading.keys = {key: value for key, value in reading.keys.items() if not key.startswith("stack.overlap")}
    if left:
        reading.unread.append(f"what the recipe says and this file does not: give {'=, '.join(left)}= where it matters")


def _value(text: str) -> Any:
    """A value of Hydra's grammar: JSON's words, and text with or without quotes."""
    try:
        return json.loads(text)
    except ValueError:
        return text.strip("'\"")


def _take(found: Mapping[str, Any], reading: Reading) -> None:
    flags: dict[str, list[str]] = {}
    for name, flag_name in VALUES.items():
        if found.get(name) is not None and flag_name not in flags:
            flags[flag_name] = [_word(found[name])]
    flags |= {of: [] for name, of in SWITCHES.items() if flag(found.get(name))}
    flags |= {of: [] for name, of in OFF.items() if name in found and not flag(found[name])}
    flags |= _words(found)
    if flags.get("--num-experts") in (["0"], ["None"]):
        del flags["--num-experts"], flags["--moe-router-topk"]
    elif "--num-experts" not in flags:
        flags.pop("--moe-router-topk", None)
    _nodes(found, reading)
    take_flags(flags, reading)
    _habits(found, reading)
    instances = found.get("ddp.num_distributed_optimizer_instances")
    reading.unread += [f"{name}={found[name]}" for name in UNREAD if found.get(name) not in (None, False, 1, "None")
                       and not (name == "ddp.num_distributed_optimizer_instances" and instances == 1)]  # fmt: skip


def _word(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _words(found: Mapping[str, Any]) -> dict[str, list[str]]:
    """Flags that a field says in words of its own."""
    flags: dict[str, list[str]] = {}
    if str(found.get("model.normalization", "")).lower() == "rmsnorm":
        flags["--normalization"] = ["RMSNorm"]
    if found.get("model.position_embedding_type") == "rope":
        flags["--position-embedding-type"] = ["rope"]
    if found.get("model.activation") in GATED:
        flags["--swiglu"] = []
    if found.get("model.optim.name") in ("distributed_fused_adam", "mcore_distributed_optim"):
        flags["--use-distributed-optimizer"] = []
    precision = " ".join(str(found[name]) for name in PRECISIONS if found.get(name))
    half = "fp16" if precision in ("16", "16-mixed") else None
    dtype = next((name for name in DTYPES if name in precision or flag(found.get(f"mixed_precision.{name}"))), half)
    return flags | ({f"--{dtype}": []} if dtype else {})


def _nodes(found: Mapping[str, Any], reading: Reading) -> None:
    for key, name in (("cluster.num_nodes", "trainer.num_nodes"), ("cluster.node.num_gpus", "trainer.devices")):
        if isinstance(found.get(name), int) and not isinstance(found[name], bool) and found[name] > 0:
            reading.take(key, found[name])


def _habits(found: Mapping[str, Any], reading: Reading) -> None:
    keys = reading.keys
    setup = Setup(
        dtype=keys["train.dtype"],
        zero_stage=keys["layout.zero_stage"],
        sequence_parallel=keys["layout.sequence_parallel"],
        gated=bool(keys.get("model.gated_mlp", True)),
        bias=bool(keys.get("model.bias", False)),
    )
    grouped = any(name.startswith("comm_overlap.") for name in found)
    for key, value in habits_in(bridge(setup, overlap_group=grouped), found).items():
        reading.take(f"stack.{key}", value)
