"""Chooses the reader of a file by its content, not by its name."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.config.files import read_yaml
from launcher.errors import InputError
from launcher.export import read_megatron, read_nemo, read_torchtitan, read_trainer
from launcher.export.read_hf import is_deepspeed, read_accelerate, read_deepspeed
from launcher.export.reading import Reading, read_text
from launcher.export.shell import programs_with, read_script
from launcher.files import read_json

READ = (
    "a script with Megatron-LM's, torchtitan's or a Trainer's flags, DeepSpeed's JSON, the YAML of `accelerate "
    "config`, TrainingArguments as JSON or YAML, torchtitan's TOML, or NeMo's and Megatron Bridge's YAML or overrides"
)
PYTHON = re.compile(r"(?m)^(?:from [\w.]+ import |import \w|def \w+\(|class \w)")
TOML = re.compile(r"(?m)^\[(?:parallelism|training|experimental)\]\s*$")
YAML = re.compile(r"(?m)^[A-Za-z_][\w.-]*:(?:\s|$)")
SCRIPTS = (
    (read_torchtitan.known, read_torchtitan.read_torchtitan),
    (read_megatron.known, read_megatron.read_megatron),
    (read_nemo.known, read_nemo.read_overrides),
    (read_trainer.known, read_trainer.read_start),
)


def read_from(file: Path) -> Reading:
    """Read the layout that a user runs today from a file; raises InputError if no reader accepts it."""
    text = read_text(file)
    if text.lstrip().startswith("{"):
        return _read_settings(file, read_json(file, remedy=f"give {READ}"))
    if TOML.search(text):
        return read_torchtitan.read_toml(file, _toml(file, text))
    if PYTHON.search(text) and not text.startswith("#!/bin/"):
        raise InputError(
            f"from={file} is Python, which is not run: give what it prints, by config.to_yaml() of Megatron Bridge or "
            "args.to_json_string() of TrainingArguments, or the script that starts it with its flags"
        )
    if YAML.search(text) and not text.startswith("#!"):
        return _read_settings(file, read_yaml(file))
    script = read_script(text)
    for known, read in SCRIPTS:
        if any(programs_with(script, known)):
            return read(file, text)
    raise InputError(f"from={file} is nothing that is read: give {READ}")


def _read_settings(file: Path, data: Mapping[str, Any]) -> Reading:
    """JSON or YAML: the tool by its keys."""
    if {"layout", "placement"} <= set(data):
        raise InputError(f"from={file} is a plan of the launcher: use it with plan={file}")
    if "distributed_type" in data:
        return read_accelerate(file, data)
    if read_trainer.is_arguments(data) and not is_deepspeed(data):
        return read_trainer.read_arguments(file, data)
    if read_nemo.is_config(data):
        return read_nemo.read_config(data)
    if is_deepspeed(data):
        return read_deepspeed(data)
    if "architectures" in data or ("model_type" in data and "hidden_size" in data):
        raise InputError(f"from={file} is the shape of a model, not a layout: give model=hf:{file}")
    known = ", ".join(sorted(map(str, data))[:6]) or "nothing"
    raise InputError(f"from={file} has {known[:200]}, which no reader knows: give {READ}")


def _toml(file: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{file} is not valid TOML ({error}): give torchtitan's file as it runs") from error
