"""Habit: variables set before torch is imported that it honours at no other time."""

import json
import os
from pathlib import Path

os.environ["PYTORCH_JIT"] = "0"
os.environ["TORCH_CPP_LOG_LEVEL"] = "INFO"

import torch


def same(x: torch.Tensor) -> torch.Tensor:
    return x


found = {"compiled": isinstance(torch.jit.script(same), torch.jit.ScriptFunction)}
Path(f"found-{os.environ['RANK']}.json").write_text(json.dumps(found))
