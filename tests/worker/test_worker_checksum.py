"""The checksum of checkpoint files shows damage, whatever pieces the file was written and read in."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.worker.checkpoint.checksum import NAME, PANEL_BYTES, Checksum, file_problem

SIZE = 2 * PANEL_BYTES + 12345
DATA = random.Random(0).randbytes(SIZE)


def checksum(data: bytes, *cuts: int) -> str:
    found, ends = Checksum(), sorted({*cuts, len(data)})
    for begin, end in zip([0, *ends], ends, strict=False):
        found.update(memoryview(bytearray(data[begin:end])))
    return found.hexdigest()


WHOLE = checksum(DATA)


CHANGES = st.dictionaries(st.integers(0, SIZE - 1), st.integers(1, 255), min_size=1, max_size=3)


@given(st.lists(st.integers(0, SIZE), max_size=6))
def test_pieces_make_no_difference(cuts: list[int]) -> None:
    assert checksum(DATA, *cuts) == WHOLE


@given(CHANGES)
def test_up_to_three_changed_bytes_show(changes: dict[int, int]) -> None:
    damaged = bytearray(DATA)
    for at, change in changes.items():
        damaged[at] ^= change
    assert checksum(bytes(damaged)) != WHOLE


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"\0" * 4096 + data[4096:],
        lambda data: data[:PANEL_BYTES] + bytes(PANEL_BYTES) + data[2 * PANEL_BYTES :],
        lambda data: data[PANEL_BYTES : 2 * PANEL_BYTES] + data[:PANEL_BYTES] + data[2 * PANEL_BYTES :],
        lambda data: data[8192:16384] + data[:8192] + data[16384:],  # two rows in each other's place
        lambda data: data[8:16] + data[:8] + data[16:],  # two words
    ],
    ids=["cut", "longer", "page of zeros", "panel of zeros", "panels swapped", "rows swapped", "words swapped"],
)
def test_damage_shows(damage: object) -> None:
    assert checksum(damage(DATA)) != WHOLE  # type: ignore[operator]


@pytest.mark.parametrize("data", [b"", b"x", DATA[:PANEL_BYTES], DATA], ids=["empty", "one byte", "one panel", "more"])
def test_a_file_is_checked_by_its_entry_of_either_version(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "rank").write_bytes(data)
    now = {"bytes": len(data), NAME: checksum(data)}
    before = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    for entry in (now, before):
        assert file_problem(tmp_path, "rank", entry) is None
        assert "bytes instead of" in str(file_problem(tmp_path, "rank", entry | {"bytes": len(data) + 1}))
        wrong = {key: "0" * 64 if key != "bytes" else value for key, value in entry.items()}
        assert "a different checksum" in str(file_problem(tmp_path, "rank", wrong))
    assert "cannot be read" in str(file_problem(tmp_path, "none", now))
