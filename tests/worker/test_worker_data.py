"""Token files, the shuffle, and batches that do not depend on the layout."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.errors import InputError
from launcher.model.token_file import HEADER
from launcher.worker.data.batches import BatchSource, Shuffle, TokenFile, open_tokens, write_token_file


@given(size=st.integers(1, 5000), key=st.text(max_size=8))
@settings(max_examples=40, deadline=None)
def test_shuffle_is_a_permutation(size: int, key: str) -> None:
    shuffle = Shuffle(size, key=key)
    assert sorted(shuffle(i) for i in range(size)) == list(range(size))


def test_shuffle_leaves_no_order_and_depends_on_the_key() -> None:
    size = 4096
    first = [Shuffle(size, key="1/0")(i) for i in range(size)]
    second = [Shuffle(size, key="1/1")(i) for i in range(size)]
    assert first != second
    neighbours = sum(abs(a - b) == 1 for a, b in pairwise(first))
    assert neighbours < size / 100
    assert abs(np.corrcoef(first, range(size))[0, 1]) < 0.1


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    numbers = np.random.default_rng(0).integers(0, 300, 10_001)
    return TokenFile(write_token_file(tmp_path / "t.tokens", iter(np.array_split(numbers, 7)), vocab=300))


def source(tokens: TokenFile, *, dp_rank: int = 0, dp: int = 1, seed: int = 1) -> BatchSource:
    return BatchSource(tokens, seq_len=64, global_batch=8, dp_rank=dp_rank, dp=dp, seed=seed)


@pytest.mark.parametrize("dp", [1, 2, 4, 8])
def test_the_global_batch_is_the_same_for_every_number_of_data_parallel_ranks(tokens: TokenFile, dp: int) -> None:
    whole = source(tokens)
    for step in (0, 3, 40):
        parts = [source(tokens, dp_rank=rank, dp=dp)(step) for rank in range(dp)]
        assert torch.equal(torch.cat([part.ids for part in parts]), whole(step).ids)
        assert torch.equal(torch.cat([part.targets for part in parts]), whole(step).targets)


def test_targets_are_the_next_tokens_and_an_epoch_sees_every_sequence_once(tokens: TokenFile) -> None:
    batches = source(tokens)
    steps = batches.num_windows // 8
    seen = set()
    for step in range(steps):
        batch = batches(step)
        assert torch.equal(batch.ids[:, 1:], batch.targets[:, :-1])
        seen |= {tuple(row[:16].tolist()) for row in batch.ids}
    assert len(seen) == steps * 8


def test_any_step_can_be_read_without_those_before_it(tokens: TokenFile) -> None:
    running = source(tokens)
    curve = [running(step).ids for step in range(30)]
    assert torch.equal(source(tokens)(29).ids, curve[29])


@pytest.mark.parametrize(("vocab", "width"), [(256, 1), (257, 2), (65536, 2), (65537, 4)])
def test_a_token_file_is_as_narrow_as_its_vocabulary_allows(tmp_path: Path, vocab: int, width: int) -> None:
    numbers = np.array([0, 1, vocab - 1])
    path = write_token_file(tmp_path / "t", [numbers], vocab=vocab)
    assert path.stat().st_size == HEADER.size + 3 * width
    assert TokenFile(path).tokens.tolist() == numbers.tolist()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_a_file_that_is_none_or_damaged_is_reported(tmp_path: Path, tokens: TokenFile) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no tokens here, but long enough for a header")
    cut(tokens.path)
    for path, word in ((tmp_path / "missing", "cannot read"), (text, "not a token file"), (tokens.path, "damaged")):
        with pytest.raises(InputError, match=word):
            TokenFile(path)


def test_tokens_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="outside the vocabulary"):
        write_token_file(tmp_path / "t", [np.array([5])], vocab=5)
    path = write_token_file(tmp_path / "u", [np.arange(300)], vocab=300)
    with pytest.raises(InputError, match=r"model.vocab=300"):
        open_tokens(str(path), run_dir=tmp_path, vocab=256, seq_len=1, build=True, barrier=lambda: None)


def test_the_standard_library_is_the_text_where_none_is_given(tmp_path: Path) -> None:
    found = open_tokens(None, run_dir=tmp_path, vocab=256, seq_len=64, build=True, barrier=lambda: None)
    assert found.num_tokens > 1_000_000
    assert b"def " in bytes(found.tokens[:100_000])
