"""Damaged texts end in a result or in the project's own error: a sample; mutated_texts.py runs as many as wanted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.cluster.hostlist import compress_hostlist, expand_hostlist
from launcher.cluster.readers_nccl import read_nccl_topology
from launcher.cluster.readers_slurm import read_slurm_topology
from launcher.cluster.readers_smi import read_list, read_query
from launcher.errors import InputError
from launcher.text import decimal_number, printable, whole_number
from tests.cluster import texts
from tests.faults import text_targets

PROGRAM = Path(__file__).parent / "mutated_texts.py"
NINES = "9" * 5000


@pytest.mark.parametrize("target", text_targets.targets(), ids=lambda target: target.name)
def test_a_reader_reads_its_texts_as_they_are(target: text_targets.Target, tmp_path: Path) -> None:
    """A reader raises for a text that it refuses: what is damaged afterwards must have been a text that it reads."""
    for text in target.texts:
        target.read(text, tmp_path)


def test_a_sample_of_damaged_texts_ends_well() -> None:
    """In a process of its own: it limits its memory and its time."""
    done = subprocess.run([sys.executable, str(PROGRAM), "--cases", "600"], capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failed" in done.stdout


# Texts that once ended in a traceback, in gigabytes or not at all.
ONCE = {
    "a number of 5000 digits": lambda: expand_hostlist(f"n[1-{NINES}]"),
    "a number of 5000 digits in a listing": lambda: read_list(f"GPU {NINES}: A100 (UUID: GPU-0)\n"),
    "digits that int does not know": lambda: expand_hostlist("n[²]"),
    "a product of ranges": lambda: expand_hostlist("n[1-60000]-[1-60000]"),
    "brackets without end": lambda: expand_hostlist("n" + "[1]" * 5000),
    "a long name times many": lambda: expand_hostlist("x" * 10**6 + "[1-65536]"),
    "XML that is 2000 deep": lambda: read_nccl_topology("<system>" + "<pci>" * 2000 + "</pci>" * 2000 + "</system>"),
    "a NUMA node of two signs": lambda: read_nccl_topology('<system><cpu numaid="--1"/></system>'),
    "characters that no encoding has": lambda: read_nccl_topology("<system>\ud800</system>"),
    "a field of 200 kB": lambda: read_query('"' + "x" * 200_000 + '"\n'),
    "a listing of 50 MB": lambda: read_list("GPU 0: A100 (UUID: GPU-0)\n" * 2_000_000),
    "many nodes on many switches": lambda: read_slurm_topology(
        "".join(f"SwitchName=s{i} Nodes=n[1-60000]\n" for i in range(100))
    ),
}


@pytest.mark.parametrize("case", ONCE)
def test_texts_that_once_broke_a_reader_are_refused(case: str) -> None:
    with pytest.raises(InputError) as caught:
        ONCE[case]()
    assert len(str(caught.value)) < 500


def test_one_gpu_with_many_slices_is_read_in_linear_time() -> None:
    slices = "".join(f"  MIG 1g.5gb     Device  {i}: (UUID: MIG-{i})\n" for i in range(1000))
    [gpu] = read_list("GPU 0: A100 (UUID: GPU-0)\n" + slices)
    assert len(gpu.slices) == 1000


def test_a_column_is_read_as_the_driver_writes_it() -> None:
    [state] = read_query(texts.query(1, clock="0123", throttle="0x0000000000000040"))
    assert (state.sm_clock_mhz, state.throttle_reasons) == (123, 64)


def test_names_without_a_number_of_common_length_survive_the_round_trip() -> None:
    names = ("n" + NINES[:200], "n007", "n008", "²", "a1b2")
    assert expand_hostlist(compress_hostlist(names)) == names


@pytest.mark.parametrize(
    ("text", "number"), [("12", 12), ("007", 7), ("", None), ("²", None), ("٣", None), ("-1", None), (NINES, None)]
)
def test_a_whole_number_is_ascii_digits_of_bounded_length(text: str, number: int | None) -> None:
    assert whole_number(text) == number
    assert decimal_number(text) == (None if number is None else float(number))


def test_what_is_shown_is_one_line_without_control_characters() -> None:
    assert printable("a\x1b[31m\nb\u2028c") == "a\ufffd[31m\ufffdb\ufffdc"
    assert printable("x" * 100, longest=10) == "x" * 9 + "…"
    assert json.loads(json.dumps(printable("\ud800"))) == "\ufffd"
