"""The header of a token file, checked without reading the tokens.

Token file, little-endian: 8 bytes magic `NVLTOKEN`, u32 version (1), u32 bytes per token (1, 2 or 4), u32 vocabulary
(every token is below it), u32 zero, u64 number of tokens, then the tokens.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import InputError

MAGIC = b"NVLTOKEN"
VERSION = 1
HEADER = struct.Struct("<8sIIIIQ")
WIDTHS = (1, 2, 4)


@dataclass(frozen=True)
class TokenHeader:
    """The first bytes of a token file."""

    width: int  # bytes per token
    vocab: int
    num_tokens: int


def read_header(path: Path) -> TokenHeader:
    """The header of a token file; raises InputError where it is none, or is damaged."""
    try:
        with path.open("rb") as file:
            header = file.read(HEADER.size)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise InputError(f"cannot read the token file {path} ({error.strerror}): give train.data=FILE") from error
    if len(header) < HEADER.size or header[:8] != MAGIC:
        raise InputError(f"{path} is not a token file: make one with python -m launcher.worker.data.tokens OUT TEXT…")
    _, version, width, vocab, _, num_tokens = HEADER.unpack(header)
    expected = HEADER.size + width * num_tokens
    if version != VERSION or width not in WIDTHS or size != expected:
        raise InputError(
            f"{path}: version {version}, {width} bytes per token and {size} bytes do not fit "
            f"(expected version {VERSION}, 1, 2 or 4, and {expected} bytes): the file is damaged, make it again"
        )
    return TokenHeader(width, vocab, num_tokens)


def check_fits(header: TokenHeader, path: Path, *, vocab: int, seq_len: int) -> None:
    """Raise InputError where a model of this vocabulary and sequence length cannot train on the file."""
    if header.vocab > vocab:
        raise InputError(
            f"{path} has a vocabulary of {header.vocab}, the model one of {vocab}: set model.vocab={header.vocab}"
        )
    if header.num_tokens < seq_len + 1:
        raise InputError(
            f"{path} has {header.num_tokens} tokens, fewer than one sequence of {seq_len} + 1: "
            "give a longer file, or lower model.seq_len"
        )
