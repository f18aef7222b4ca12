"""TrainingArguments of Hugging Face's Trainer, as JSON, YAML or flags, and the scripts that start it.

Names: transformers 5.24, training_args.py; TRL's, Axolotl's and LLaMA-Factory's files have the same and some of their
own. Layouts are accelerate's, which the Trainer runs on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launcher.config.files import read_yaml
from launcher.errors import InputError
from launcher.export.model_habits import trainer
from launcher.export.read_hf import (
    STRATEGIES,
    Data,
    named_deepspeed,
    take_accelerate,
    take_deepspeed,
    take_fsdp,
    take_plain,
)
from launcher.export.reading import Flags, Reading, allocator, command_in, first, flag, flags_in, number
from launcher.files import read_json
from launcher.planner.habits import Setup, flat, habits_in

MICRO, STEPS = "per_device_train_batch_size", "gradient_accumulation_steps"
USUAL_MICRO = 8  # TrainingArguments' default
DTYPES = ("bf16", "fp16")
AXOLOTL = {"micro_batch_size": MICRO, "sequence_len": "max_length", "optimizer": "optim"}
LENGTHS = ("max_length", "max_seq_length", "model_max_length", "block_size", "cutoff_len")
ADAMW = ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused")
# Arguments of these files that change time or memory, and that have no key here; with the values that do not.
TELLING: Mapping[str, tuple[Any, ...]] = {
    "auto_find_batch_size": (),
    "group_by_length": (),
    "neftune_noise_alpha": (),
    "packing": (True,),
    "sample_packing": (True,),
    "tp_size": (1, 0),
    "sequence_parallel_degree": (1,),
    "context_parallel_size": (1,),
    "torch_empty_cache_steps": (),
}
# With one of these an adapter alone is trained, or weights are in fewer bits.
ADAPTED: Mapping[str, tuple[Any, ...]] = {
    "use_peft": (),
    "use_lora": (),
    "adapter": (),
    "finetuning_type": ("full",),
    "load_in_4bit": (),
    "load_in_8bit": (),
    "quantization_bit": (),
}
# Liger's kernels, as its package has them where liger_kernel_config leaves one out.
LIGER = {"rope": True, "rms_norm": True, "swiglu": True, "cross_entropy": False, "fused_linear_cross_entropy": True}


def is_arguments(data: Mapping[str, Any]) -> bool:
    """Whether a file of settings has TrainingArguments, or Axolotl's."""
    return MICRO in data or STEPS in data or ("base_model" in data and "micro_batch_size" in data)


def read_arguments(file: Path, data: Data) -> Reading:
    """A JSON or YAML file of arguments."""
    reading = Reading("hf")
    take_plain(reading)
    _take(file, data, reading)
    if reading.keys["layout.zero_stage"] == 0:
        reading.unread.append("accelerate's file, if it is started with one: alone it trains in plain data parallelism")
    return reading


def read_start(file: Path, text: str) -> Reading:
    """A script that starts a Trainer, accelerate or DeepSpeed: its flags, and the files that they name."""
    reading = Reading("hf")
    words = command_in(text, known, reading)
    script = next((place for place, word in enumerate(words) if word.endswith(".py")), -1)
    start, own = flags_in(words[: script if script >= 0 else None]), flags_in(words[script + 1 :])
    accelerated = any(
        Path(word).name == "accelerate" or word.startswith("accelerate.")
        for word in words[: script if script >= 0 else None]
    )
    if accelerated:
        take_accelerate(file, _settings(file, start), reading)
        reading.target = "accelerate"
    else:
        take_plain(reading)
    arguments = _arguments(file, words[script + 1 :], own)
    if is_arguments(arguments):
        reading.target = "hf"
        reading.unread = [line for line in reading.unread if not line.startswith("the micro batch")]
        _take(file, arguments, reading, given=reading.keys)
    elif config := first(own, "--deepspeed_config", "--deepspeed-config", "--deepspeed"):
        reading.target = "deepspeed"
        take_deepspeed(named_deepspeed(_beside(file, config), f"{file} names it"), reading)
    elif not accelerated:
        raise InputError(
            f"from={file} starts a script without a Trainer's arguments: give from= the file that it reads"
        )
    for key, value in habits_in(_segments(reading), allocator(text)).items():
        reading.take(f"stack.{key}", value)
    return reading


def known(word: str) -> bool:
    """Whether a word is of a command that starts a Trainer, accelerate or DeepSpeed."""
    name = word.partition("=")[0].replace("-", "_")
    return name in (f"__{MICRO}", f"__{STEPS}", "__config_file", "__deepspeed", "__deepspeed_config", "__fsdp") or (
        word.endswith("accelerate")
    )


def _segments(reading: Reading) -> Any:
    table = trainer(Setup(dtype=reading.keys["train.dtype"]))
    return {"expandable_segments": table["expandable_segments"]}


def _beside(file: Path, name: str) -> Path:
    """A file that another names: from where the other is, or from here."""
    if "$" in name:
        raise InputError(f"{file} names the file {name}, which is known only where it runs: give that file to from=")
    folders = [file.absolute().parent, Path(), *file.absolute().parents[1:5]]  # names may start at the project's root
    return next((folder / name for folder in folders if (folder / name).exists()), file.parent / name)


def _settings(file: Path, start: Flags) -> Data:
    """Accelerate's settings: of its file, and its launcher's flags, which win."""
    named = first(start, "--config_file", "--config-file")
    found: dict[str, Any] = dict(read_yaml(_beside(file, named))) if named else {}
    said = {name.removeprefix("--").replace("-", "_"): words[0] if words else True for name, words in start.items()}
    if "use_fsdp" in said or "use_deepspeed" in said:
        found["distributed_type"] = "FSDP" if "use_fsdp" in said else "DEEPSPEED"
    found |= {key: said[key] for key in ("num_machines", "num_processes", "mixed_precision") if key in said}
    for group, prefix in (("fsdp_config", "fsdp_"), ("parallelism_config", "parallelism_config_")):
        if more := {key: value for key, value in said.items() if key.startswith(prefix)}:
            found[group] = {**found.get(group, {}), **more}
    names = ("zero_stage", "offload_optimizer_device", STEPS, "deepspeed_config_file")
    if plugin := {key: said[key] for key in names if key in said}:
        found["deepspeed_config"] = {**found.get("deepspeed_config", {}), **plugin}
    return found


def _arguments(file: Path, words: list[str], own: Flags) -> dict[str, Any]:
    """Arguments of the script: of the file that it is given, and flags, which win."""
    found: dict[str, Any] = {}
    named = words[0] if words and not words[0].startswith("-") else first(own, "--config")
    if named and named.endswith((".json", ".yaml", ".yml")):
        found = dict(_data(_beside(file, named)))
    for name, values in own.items():
        found[name.removeprefix("--").replace("-", "_")] = " ".join(values) if values else True
    return found


def _data(file: Path) -> Data:
    return read_json(file, remedy="a script names it") if file.suffix == ".json" else read_yaml(file)


def _take(file: Path, data: Data, reading: Reading, given: Mapping[str, Any] | None = None) -> None:
    """Arguments over what accelerate's file says (`given`)."""
    data = {AXOLOTL.get(key, key): value for key, value in data.items()}
    micro = number(data.get(MICRO, USUAL_MICRO), MICRO)
    steps = number(data.get(STEPS, 1), STEPS)
    said = next((dtype for dtype in DTYPES if flag(data.get(dtype))), None)
    if said or not given:
        reading.take("train.dtype", said or ("bf16" if data.get("bf16") == "auto" else "fp32"))
    if data.get("deepspeed") not in (None, "", False):
        _take_deepspeed(file, data, micro, steps, reading)
    elif data.get("fsdp") not in (None, "", False, []):
        _take_fsdp(file, data, reading)
    if reading.keys.get("stack") != "deepspeed" or "layout.micro_batch" not in reading.keys:
        reading.take("layout.micro_batch", micro)
        reading.accumulation = steps
    _take_recompute(data, reading)
    _take_habits(data, reading)
    length = next((data[name] for name in LENGTHS if data.get(name)), None)
    reading.take("model.seq_len", number(length, "the length of a sequence"))
    if str(data.get("optim", "adamw_torch")) == "sgd":
        reading.take("train.optimizer", "sgd")
    reading.unread += _unread(data)


def _take_deepspeed(file: Path, data: Data, micro: int | None, steps: int | None, reading: Reading) -> None:
    """Its JSON, or the mapping itself, with `auto` as the Trainer fills it in."""
    config = data["deepspeed"]
    if isinstance(config, str) and config.lstrip().startswith("{"):
        config = json.loads(config)
    if not isinstance(config, Mapping):
        config = named_deepspeed(_beside(file, str(config)), f"{file} names it as deepspeed")
    filled = {
        **config,
        **{dtype: {**_mapping(config, dtype), "enabled": reading.keys["train.dtype"] == dtype} for dtype in DTYPES
           if _mapping(config, dtype).get("enabled") == "auto"},
    }  # fmt: skip
    for key, value in (("train_micro_batch_size_per_gpu", micro), (STEPS, steps)):
        if filled.get(key, "auto") == "auto":
            filled[key] = value
    automatic = {key: value for key, value in filled.items() if value != "auto"}
    take_deepspeed(automatic, reading)


def _mapping(data: Data, key: str) -> Data:
    value = data.get(key)
    return value if isinstance(value, Mapping) else {}


def _take_fsdp(file: Path, data: Data, reading: Reading) -> None:
    """`fsdp` in words (until transformers 4) or as a truth value, with `fsdp_config`."""
    config = data.get("fsdp_config") or {}
    if isinstance(config, str):
        config = read_json(_beside(file, config), remedy=f"{file} names it as fsdp_config")
    settings = {f"fsdp_{str(key).removeprefix('fsdp_')}": value for key, value in config.items()}
    fsdp = data["fsdp"]
    words = [str(word) for word in fsdp] if isinstance(fsdp, list) else str(fsdp).split()
    named = [word.upper() for word in words if word.upper() in STRATEGIES and not word.isdigit()]
    if named:
        settings["fsdp_sharding_strategy"] = named[0]
        settings.pop("fsdp_reshard_after_forward", None)
    if "offload" in words or settings.get("fsdp_cpu_offload"):
        settings["fsdp_offload_params"] = True
    strange = [word for word in words if word.upper() not in STRATEGIES and word not in FSDP_WORDS]
    if strange:
        raise InputError(f"fsdp={' '.join(words)[:60]}: {strange[0]} is none of {', '.join((*NAMES, *FSDP_WORDS[:2]))}")
    parallel = {f"parallelism_config_{key}": value for key, value in _mapping(data, "parallelism_config").items()}
    take_fsdp(settings, parallel, reading)


FSDP_WORDS = ("auto_wrap", "offload", "true", "True")
NAMES = tuple(name.lower() for name in STRATEGIES if not name.isdigit())


def _take_recompute(data: Data, reading: Reading) -> None:
    if flag(data.get("gradient_checkpointing")) or flag(data.get("activation_checkpointing")):
        reading.take("layout.recompute", "full")
    else:
        reading.keys.setdefault("layout.recompute", "none")
    reading.unread = [line for line in reading.unread if not line.startswith("a pipeline, and recomputation")]


def _take_habits(data: Data, reading: Reading) -> None:
    """Compilation, and Liger's kernels."""
    keys = reading.keys
    found = {key: flag(data[key]) for key in ("torch_compile",) if key in data}
    if data.get("torch_compile_backend") or data.get("torch_compile_mode"):
        found["torch_compile"] = True
    if flag(data.get("use_liger_kernel")):
        kernels = {**LIGER, **_mapping(data, "liger_kernel_config")}
        loss = kernels.pop("fused_linear_cross_entropy")
        if loss and not kernels["cross_entropy"]:
            kernels["cross_entropy"] = True
            reading.unread.append("fused_linear_cross_entropy: logits are never whole there, and are counted here")
        found |= flat({"liger_kernel_config": kernels})
    setup = Setup(
        dtype=keys["train.dtype"],
        zero_stage=keys.get("layout.zero_stage", 0),
        compile=bool(found.get("torch_compile")),
        deepspeed=keys.get("stack") == "deepspeed",
    )
    table = {key: entry for key, entry in trainer(setup).items() if key in ARGUMENT_HABITS}
    for key, value in habits_in(table, found).items():
        reading.take(f"stack.{key}", value)


ARGUMENT_HABITS = ("compile", "fused_rotary", "fused_norm", "fused_activation", "fused_loss")


def _unread(data: Data) -> Iterator[str]:
    for group, means in ((TELLING, ""), (ADAPTED, ": all weights are counted as trained, and in the training's dtype")):
        for key, harmless in group.items():
            value = data.get(key)
            if str(value).lower() not in ("none", "false", "", *map(str, harmless)):
                yield f"{key}={str(value)[:40]}{means}"
    optimizer = str(data.get("optim", "adamw_torch"))
    if optimizer not in (*ADAMW, "sgd"):
        yield f"optim={optimizer[:40]}: AdamW is counted"
    model = data.get("model_name_or_path") or data.get("base_model")
    yield f"the model{f' {model}' if model else ''}: give model=NAME, or model=hf:FOLDER with its config.json"
