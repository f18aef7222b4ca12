"""Command line flags of torchtitan, today's in tokens and earlier ones in sequences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launcher.export.reading import Reading, allocator, command_in, first, flags_in, number
from launcher.export.torchtitan_habits import torchtitan
from launcher.planner.habits import Setup, flat, habits_in
from launcher.text import whole_number

DEGREES = {
    "tensor_parallel_degree": "layout.tp",
    "pipeline_parallel_degree": "layout.pp",
    "context_parallel_degree": "layout.cp",
    "expert_parallel_degree": "layout.ep",
}
SCHEDULES = {"gpipe": "gpipe", "1f1b": "1f1b", "interleaved1f1b": "interleaved"}
RECOMPUTE = {"none": "none", "selective": "op", "full": "full"}


def read_torchtitan(file: Path, text: str) -> Reading:
    """A script with its flags."""
    reading = Reading("torchtitan")
    words = command_in(text, known, reading)
    flags = {name.removeprefix("--").replace("-", "_"): values for name, values in flags_in(words).items()}
    if file_word := first(flags, "job.config_file"):
        reading.unread.append(f"--job.config_file {file_word}: give from={file_word} for what it says")
    _read(flags, " ".join(words), text, reading)
    return reading


def known(word: str) -> bool:
    """Whether a word is a flag of torchtitan's layout."""
    return word.startswith(("--parallelism.", "--training."))


def read_toml(file: Path, data: Mapping[str, Any]) -> Reading:
    """A TOML file, which torchtitan had until 2026; its earliest names of degrees too."""
    reading = Reading("torchtitan")
    found = {EARLIER.get(name, name): value for name, value in flat(data).items()}
    flags = {name: _words(value) for name, value in found.items()}
    flags.pop("checkpoint.mode", None)
    _read(flags, "", "", reading)
    name, flavor = found.get("model.name"), found.get("model.flavor")
    if name:
        reading.unread[-1] = f"the model {name} {flavor or ''}".rstrip() + ": give model=NAME"
    return reading


EARLIER = {
    "training.data_parallel_degree": "parallelism.data_parallel_shard_degree",
    "training.data_parallel_shard_degree": "parallelism.data_parallel_shard_degree",
    "training.data_parallel_replicate_degree": "parallelism.data_parallel_replicate_degree",
    "training.tensor_parallel_degree": "parallelism.tensor_parallel_degree",
    "experimental.pipeline_parallel_degree": "parallelism.pipeline_parallel_degree",
    "experimental.context_parallel_degree": "parallelism.context_parallel_degree",
    "experimental.pipeline_parallel_schedule": "parallelism.pipeline_parallel_schedule",
    "experimental.enable_async_tensor_parallel": "parallelism.enable_async_tensor_parallel",
    "training.batch_size": "training.local_batch_size",
}


def _words(value: Any) -> list[str]:
    if isinstance(value, list):
        return [str(each) for each in value]
    return [str(value).lower() if isinstance(value, bool) else str(value)]


def _read(flags: Mapping[str, list[str]], words: str, text: str, reading: Reading) -> None:
    reading.take("stack", "torchtitan")
    for name, key in DEGREES.items():
        reading.take_number(key, flags, f"parallelism.{name}")
        reading.keys.setdefault(key, 1)
    _take_sharding(flags, reading)
    _take_batch(flags, reading)
    schedule = (first(flags, "parallelism.pipeline_parallel_schedule") or "1F1B").lower()
    if reading.keys["layout.pp"] > 1:
        reading.take("layout.schedule", SCHEDULES.get(schedule))
        reading.unread += [] if schedule in SCHEDULES else [f"the schedule {schedule}"]
        reading.unread.append("stages of a rank: set layout.virtual_stages or layout.layer_split")
    _take_recompute(words, flags, reading)
    reading.take("layout.sequence_parallel", _sequence_parallel(flags, reading.keys["layout.tp"]))
    settings = {**_settings(flags), **allocator(text)}
    setup = Setup(tp=reading.keys["layout.tp"], compile=bool(settings.get("compile.enable")))
    for habit, value in habits_in(torchtitan(setup), settings).items():
        reading.take(f"stack.{habit}", value)
    reading.unread += _fp8(flags)
    reading.unread += [f"settings that are not known here: {' '.join(strange)}"] if (strange := _strange(flags)) else []
    reading.unread.append("the model: give model=NAME as its --config has it")


def _strange(flags: Mapping[str, list[str]]) -> list[str]:
    """Settings of how it trains that are neither read nor without a part in time and memory."""
    sections = tuple(f"{section}." for section in KNOWN)
    found = (name.replace(".no_", ".").replace(".disable_", ".enable_") for name in flags if name.startswith(sections))
    return sorted(name for name in found if name.partition(".")[2] not in KNOWN[name.partition(".")[0]])


KNOWN: Mapping[str, tuple[str, ...]] = {
    "parallelism": (
        *DEGREES, "data_parallel_replicate_degree", "data_parallel_shard_degree", "fsdp_reshard_after_forward",
        "pipeline_parallel_schedule", "pipeline_parallel_microbatch_size", "pipeline_parallel_layers_per_stage",
        "pipeline_parallel_first_stage_less_layers", "pipeline_parallel_last_stage_less_layers",
        "enable_sequence_parallel", "enable_async_tensor_parallel", "enable_loss_parallel",
        "module_fqns_per_model_part", "enable_compiled_autograd", "context_parallel_rotate_method",
    ),
    "training": (
        "max_context_length", "seq_len", "num_tokens_per_microbatch_per_dp_rank", "num_tokens_per_train_step",
        "global_batch_size", "local_batch_size", "batch_size", "steps", "max_norm", "mixed_precision_param",
        "mixed_precision_reduce", "compile", "enable_cpu_offload", "enable_cuda_graphs", "enable_loss_parallel", "seed",
        "deterministic", "dataset", "dataset_path", "gc_freq", "gc_debug", "warmup_steps", "dtype",
    ),
    "compile": ("enable", "components", "backend", "enable_async_tensor_parallel"),
    "activation_checkpoint": (
        "mode", "selective_ac_option", "early_stop", "preserve_rng_state",
        "per_op_sac_force_recompute_mm_shapes_by_fqns",
    ),
}  # fmt: skip


def _fp8(flags: Mapping[str, list[str]]) -> Iterator[str]:
    if "float8" in " ".join(flags.get("model.converters", [])) or any(name.startswith("quantize.") for name in flags):
        yield "its converters of float8: set train.gemm_dtype=fp8"
    if first(flags, "training.enable_cpu_offload") in ("true", "True"):
        yield "training.enable_cpu_offload: there is no key for parameters on the host"


def _settings(flags: Mapping[str, list[str]]) -> dict[str, Any]:
    """Settings of habits: truth values have no words, or `no-` before their name; the list of components is one."""
    found: dict[str, Any] = {}
    for name, words in flags.items():
        section, _, option = name.rpartition(".")
        if name == "compile.components":
            found[name] = words
        elif words and words[0].lower() not in ("true", "false"):
            found[name] = words[0]
        else:
            found[f"{section}.{option.removeprefix('no_')}"] = not option.startswith("no_") and words[:1] != ["false"]
    return found


def _take_sharding(flags: Mapping[str, list[str]], reading: Reading) -> None:
    replicas = number(first(flags, "parallelism.data_parallel_replicate_degree"), "replicate degree") or 1
    shards = first(flags, "parallelism.data_parallel_shard_degree") or "-1"
    never = first(flags, "parallelism.fsdp_reshard_after_forward") == "never" or (
        first(flags, "parallelism.fsdp_reshard_after_forward") in (None, "default") and reading.keys["layout.pp"] > 1
    )
    sharded = shards != "1"
    reading.take("layout.zero_stage", (2 if never else 3) if sharded else 0)
    if sharded and replicas > 1 and shards != "-1":
        group = number(shards, "data_parallel_shard_degree") or 1
        reading.take("layout.shard_group", group * reading.keys["layout.cp"])
    elif sharded and replicas > 1:
        reading.unread.append(f"data_parallel_replicate_degree={replicas} of a rest: set layout.shard_group")


def _take_batch(flags: Mapping[str, list[str]], reading: Reading) -> None:
    seq_len = number(first(flags, "training.max_context_length", "training.seq_len"), "sequence length")
    reading.take("model.seq_len", seq_len)
    tokens = number(first(flags, "training.num_tokens_per_microbatch_per_dp_rank"), "tokens of a micro-batch")
    step = number(first(flags, "training.num_tokens_per_train_step"), "tokens of a step")
    if seq_len and tokens:
        reading.take("layout.micro_batch", max(1, tokens // seq_len))
    if seq_len and step:
        reading.take("train.global_batch", max(1, step // seq_len))
    batch = first(flags, "training.global_batch_size")
    reading.take("train.global_batch", None if batch == "-1" else number(batch, "global batch"))
    small = first(flags, "parallelism.pipeline_parallel_microbatch_size")
    local = first(flags, "training.local_batch_size") if reading.keys["layout.pp"] == 1 else small
    reading.take("layout.micro_batch", number(local, "micro batch"))
    a_rank = number(first(flags, "training.local_batch_size"), "local batch")  # without a global one, all of its batch
    if a_rank or tokens:
        reading.accumulation = max(1, (a_rank or 1) // reading.keys.get("layout.micro_batch", 1))


def _take_recompute(words: str, flags: Mapping[str, list[str]], reading: Reading) -> None:
    """Its form, of a subcommand, a flag or a table; `selective` of every Nth layer recomputes whole layers."""
    subcommand = next((word for word in words.split() if word.startswith("activation-checkpoint:")), "")
    form = subcommand.partition(":")[2] or first(flags, "activation_checkpoint.mode") or "selective"
    every = whole_number(first(flags, "activation_checkpoint.selective_ac_option"))
    if form == "selective" and every:
        reading.take("layout.recompute", "full")
        reading.take("layout.recompute_fraction", 1 / every)
    else:
        reading.take("layout.recompute", RECOMPUTE.get(form))


def _sequence_parallel(flags: Mapping[str, list[str]], tp: int) -> bool:
    off = {"parallelism.no_enable_sequence_parallel", "parallelism.disable_sequence_parallel"} & set(flags)
    return tp > 1 and not off
