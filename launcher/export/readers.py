"""Chooses the reader of a file by its content, not by its name."""

from __future__ import annotations

from pathlib import Path

from launcher.errors import InputError
from launcher.export.read_hf import check_deepspeed, read_accelerate, read_deepspeed
from launcher.export.read_megatron import read_megatron
from launcher.export.read_torchtitan import read_torchtitan
from launcher.export.reading import Reading, read_text


def read_from(file: Path) -> Reading:
    """Read the layout that a user runs today from a file; raises InputError if no reader accepts it."""
    text = read_text(file)
    if text.lstrip().startswith("{"):
        check_deepspeed(file)
        return read_deepspeed(file, text)
    if "--parallelism." in text:
        return read_torchtitan(file, text)
    if "--tensor-model-parallel-size" in text or "--pipeline-model-parallel-size" in text or "--num-layers" in text:
        return read_megatron(file, text)
    if "distributed_type" in text:
        return read_accelerate(file, text)
    raise InputError(
        f"from={file} is nothing that is read: a script with Megatron-LM's or torchtitan's flags, DeepSpeed's JSON, "
        "or the YAML of `accelerate config`"
    )
