"""Initial weights that depend on the seed and the parameter's name only: the same model under every layout."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from launcher.model import Model

STD = 0.02  # GPT-2 (Radford et al. 2019)


def initial_value(name: str, shape: Sequence[int], *, model: Model, seed: int) -> Tensor:
    """The whole (unsharded) fp32 initial value of the parameter `name`, on the CPU.

    Norm scales are 1, biases and shifts 0, matrices normal; projections back into the residual stream are scaled
    by 1/√(2 · layers) (GPT-2).
    """
    if name.endswith("bias"):
        return torch.zeros(tuple(shape))
    if "norm" in name.split(".")[-2]:
        return torch.ones(tuple(shape))
    std = STD * (2 * model.layers) ** -0.5 if name.split(".")[-2] in ("o", "down") else STD
    digest = hashlib.sha256(f"{seed}/{canonical(name, model)}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.empty(tuple(shape)).normal_(0.0, std, generator=generator)


class InitialWeights:
    """Weights to start from: drawn from the seed, or read from a Hugging Face folder. Gives whole fp32 tensors."""

    def __init__(self, model: Model, *, seed: int, folder: Path | None = None) -> None:
        self._model, self._seed = model, seed
        self._read = None
        if folder is not None:
            from launcher.worker.model.huggingface import FolderWeights

            self._read = FolderWeights(folder, model=model)

    def __call__(self, name: str, shape: Sequence[int]) -> Tensor:
        """The value of the parameter with the global name `name`."""
        if self._read is not None:
            return self._read(canonical(name, self._model), shape)
        return initial_value(name, shape, model=self._model, seed=self._seed)


def canonical(name: str, model: Model) -> str:
    """The name under which a parameter is known everywhere: a tied head is the token embedding."""
    return "tokens.weight" if model.tied_embeddings and name == "head.weight" else name
