"""Token files and batches: memory-mapped, shuffled by a pure function of (seed, position), split by data-parallel rank.

The format of a token file is described in launcher/model/token_file.py.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from launcher.errors import InputError
from launcher.model.token_file import HEADER, MAGIC, VERSION, check_fits, read_header
from launcher.run.folder import RunFolder

Tokens = npt.NDArray[Any]
_DTYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4")}


class TokenFile:
    """A memory-mapped token file; raises InputError if it is not one."""

    def __init__(self, path: Path) -> None:
        self.header = read_header(path)
        self.vocab, self.num_tokens = self.header.vocab, self.header.num_tokens
        self.path = path
        self.tokens = np.memmap(path, dtype=_DTYPES[self.header.width], mode="r", offset=HEADER.size)


def write_token_file(path: Path, chunks: Iterable[Tokens], *, vocab: int) -> Path:
    """Write tokens to `path` atomically, with the smallest width that fits `vocab`."""
    width = next(w for w in sorted(_DTYPES) if vocab <= 256**w)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    count = 0
    with temporary.open("wb") as file:
        file.write(b"\0" * HEADER.size)
        for chunk in chunks:
            if chunk.size and int(chunk.max()) >= vocab:
                raise InputError(
                    f"token {int(chunk.max())} is outside the vocabulary of {vocab}: give a larger vocabulary"
                )
            file.write(chunk.astype(_DTYPES[width]).tobytes())
            count += chunk.size
        file.seek(0)
        file.write(HEADER.pack(MAGIC, VERSION, width, vocab, 0, count))
    temporary.replace(path)
    return path


def standard_library_tokens() -> Iterable[Tokens]:
    """The source files of this Python's standard library, as bytes, in the order of their names."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(root.glob("*.py")) + sorted(root.glob("[a-z]*/*.py")):
        if not {"site-packages", "dist-packages", "test", "tests", "idlelib"} & set(file.relative_to(root).parts):
            yield np.frombuffer(file.read_bytes(), dtype=np.uint8)


class Shuffle:
    """A pseudo-random permutation of 0 … size-1 as a function: a four-round Feistel network with cycle walking.

    It needs no memory and no state, so resuming at any step with any layout is only arithmetic.
    """

    def __init__(self, size: int, *, key: str) -> None:
        self.size = size
        self._bits = max(1, (max(1, size - 1).bit_length() + 1) // 2)
        digest = hashlib.sha256(key.encode()).digest()
        self._keys = [int.from_bytes(digest[i * 8 : i * 8 + 8], "little") for i in range(4)]

    def __call__(self, index: int) -> int:
        value = self._encrypt(index)
        while value >= self.size:  # the network permutes a power of 4 ≥ size: at most 4 tries on average
            value = self._encrypt(value)
        return value

    def _encrypt(self, value: int) -> int:
        mask = (1 << self._bits) - 1
        left, right = value >> self._bits, value & mask
        for key in self._keys:
            mixed = ((right ^ key) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
            mixed = ((mixed ^ (mixed >> 29)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
            left, right = right, left ^ ((mixed >> 32) & mask)
        return (left << self._bits) | right


@dataclass(frozen=True)
class Batch:
    """One data-parallel rank's part of a global batch: ids and targets, both (sequences, seq_len)."""

    ids: Tensor
    targets: Tensor


class BatchSource:
    """The batches of one data-parallel rank. Batch `step` is the same global batch for every layout."""

    def __init__(self, file: TokenFile, *, seq_len: int, global_batch: int, dp_rank: int, dp: int, seed: int) -> None:
        self._file = file
        self._seq_len = seq_len
        self._global_batch = global_batch
        self._per_rank = global_batch // dp
        self._first = dp_rank * self._per_rank
        self._seed = seed
        self.num_windows = (file.num_tokens - 1) // seq_len
        self._epoch = -1
        self._shuffle = Shuffle(self.num_windows, key="")

    def __call__(self, step: int) -> Batch:
        """Return the rank's sequences of global batch `step` (from 0)."""
        first = step * self._global_batch + self._first
        rows = np.stack([self._window(index) for index in range(first, first + self._per_rank)])
        tokens = torch.from_numpy(rows)
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())

    def _window(self, index: int) -> Tokens:
        epoch, position = divmod(index, self.num_windows)
        if epoch != self._epoch:
            self._epoch, self._shuffle = epoch, Shuffle(self.num_windows, key=f"{self._seed}/{epoch}")
        start = self._shuffle(position) * self._seq_len
        window: Tokens = self._file.tokens[start : start + self._seq_len + 1].astype(np.int64)
        return window


def open_tokens(
    data: str | None, *, run_dir: Path, vocab: int, seq_len: int, build: bool, barrier: Callable[[], object]
) -> TokenFile:
    """Open the user's token file, or the standard library's, which the rank with `build` writes to the run folder.

    Collective through `barrier`. Raises InputError if the tokens do not fit the model's vocabulary.
    """
    path = Path(data) if data is not None else RunFolder(run_dir).data("stdlib")
    if data is None and build and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_token_file(path, standard_library_tokens(), vocab=256)
    barrier()
    tokens = TokenFile(path)
    check_fits(tokens.header, path, vocab=vocab, seq_len=seq_len)
    return tokens
