"""Text to a token file: python -m launcher.worker.data.tokens OUT TEXT… [--tokenizer tokenizer.json]

Without a tokenizer the text is read as bytes (vocabulary 256). Format: launcher/model/token_file.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from launcher.errors import InputError
from launcher.worker.data.batches import TokenFile, Tokens, write_token_file

CHUNK_BYTES = 1 << 20


def byte_tokens(files: Sequence[Path]) -> Iterator[Tokens]:
    """The bytes of the files, one after the other."""
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield np.frombuffer(chunk, dtype=np.uint8)


def tokenizer_tokens(files: Sequence[Path], tokenizer: Path) -> tuple[Iterator[Tokens], int]:
    """The tokens of the files by a Hugging Face `tokenizers` file, cut at line ends, and its vocabulary."""
    from tokenizers import Tokenizer

    try:
        made = Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # the library raises a bare Exception
        raise InputError(f"cannot read the tokenizer {tokenizer} ({error}): give a tokenizer.json") from error

    def tokens() -> Iterator[Tokens]:
        for path in files:
            for text in _lines(path):
                yield np.asarray(made.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    return tokens(), int(made.get_vocab_size())


def _lines(path: Path) -> Iterator[str]:
    """Runs of whole lines of about CHUNK_BYTES."""
    with path.open(encoding="utf-8", errors="replace") as file:
        while lines := file.readlines(CHUNK_BYTES):
            yield "".join(lines)


def convert(out: Path, files: Sequence[Path], *, tokenizer: Path | None) -> TokenFile:
    """Write `out` from text files; raises InputError for files that cannot be read."""
    missing = [f"cannot read {path}: no such file" for path in files if not path.is_file()]
    if missing:
        raise InputError(missing)
    chunks, vocab = (byte_tokens(files), 256) if tokenizer is None else tokenizer_tokens(files, tokenizer)
    return TokenFile(write_token_file(out, chunks, vocab=vocab))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m launcher.worker.data.tokens", description="Make a token file from text."
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("text", type=Path, nargs="+")
    parser.add_argument("--tokenizer", type=Path, help="a Hugging Face tokenizers file; without it, bytes")
    parsed = parser.parse_args(arguments)
    try:
        made = convert(parsed.out, parsed.text, tokenizer=parsed.tokenizer)
    except InputError as error:
        parser.exit(error.exit_code, f"error: {error}\n")
    print(f"{made.path}: {made.num_tokens:,} tokens, vocabulary {made.vocab}; train on it with train.data={made.path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
