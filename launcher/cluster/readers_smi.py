"""Reads `nvidia-smi -L`, `nvidia-smi mig -lgip` and `nvidia-smi --query-gpu=… --format=csv`."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from launcher.errors import InputError
from launcher.text import bounded, printable, whole_number
from launcher.units import GIB, MIB

_N = r"([0-9]{1,9})"  # a number of the texts: \d would take digits that int does not know
_GPU = re.compile(rf"GPU {_N}: ([^\n]{{1,200}}?) \(UUID: (GPU-[\w-]{{1,80}})\)", re.ASCII)
_MIG = re.compile(rf"\s+MIG (\S{{1,80}})\s+Device\s+{_N}: \(UUID: (MIG-[\w/-]{{1,120}})\)", re.ASCII)
_PROFILE = re.compile(
    rf"\|\s+{_N}\s+MIG (\S{{1,80}})\s+{_N}\s+{_N}/{_N}\s+([0-9]{{1,9}}(?:\.[0-9]{{1,9}})?)\s+(Yes|No)\s+{_N}", re.ASCII
)

MOST_GPUS = 1024  # of one node, or slices of one GPU: far above any machine


@dataclass(frozen=True)
class MigSlice:
    """One MIG device of a GPU."""

    profile: str
    index: int
    uuid: str


@dataclass(frozen=True)
class ListedGpu:
    """One line of `nvidia-smi -L`, with the slices that the GPU is cut into."""

    index: int
    name: str
    uuid: str
    slices: tuple[MigSlice, ...] = ()


@dataclass(frozen=True)
class MigProfile:
    """One row of `nvidia-smi mig -lgip`: what a slice of that profile is given."""

    name: str
    profile_id: int
    instances: int  # how many fit one GPU
    memory_bytes: int
    num_sms: int
    peer_to_peer: bool


@dataclass(frozen=True)
class MigInstance:
    """One row of `nvidia-smi mig -lgi`: an instance that exists, and the memory slices that it covers."""

    gpu: int
    profile: str
    start: int
    size: int


@dataclass(frozen=True)
class GpuState:
    """The driver's report about one GPU; None: not reported ([N/A], or an older driver)."""

    index: int
    name: str
    uuid: str
    memory_bytes: int | None
    driver: str
    mig_enabled: bool | None
    ecc_uncorrected: int | None
    pending_retirement: bool | None
    remap_failed: bool | None
    sm_clock_mhz: int | None
    max_sm_clock_mhz: int | None
    throttle_reasons: int | None


_INSTANCE = re.compile(rf"\|\s+{_N}\s+MIG (\S{{1,80}})\s+[0-9]+\s+[0-9]+\s+{_N}:{_N}\s+\|", re.ASCII)
QUERY = (
    "index", "name", "uuid", "memory.total", "driver_version", "mig.mode.current",
    "ecc.errors.uncorrected.volatile.total", "retired_pages.pending", "remapped_rows.failure",
    "clocks.sm", "clocks.max.sm", "clocks_throttle_reasons.active",
)  # fmt: skip
QUERY_COMMAND = ("nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits")


def read_list(text: str) -> tuple[ListedGpu, ...]:
    """GPUs and their MIG slices out of `nvidia-smi -L`; raises InputError for another text."""
    gpus: list[ListedGpu] = []
    slices: list[list[MigSlice]] = []
    for line in bounded(text, "`nvidia-smi -L`").splitlines():
        if match := _GPU.match(line):
            gpus.append(ListedGpu(int(match[1]), match[2], match[3]))
            slices.append([])
        elif (match := _MIG.match(line)) and gpus:
            slices[-1].append(MigSlice(match[1], int(match[2]), match[3]))
        elif line.strip():
            raise InputError(f"this is not `nvidia-smi -L`: {printable(line.strip())!r} names no GPU")
        if len(gpus) > MOST_GPUS or (slices and len(slices[-1]) > MOST_GPUS):
            raise InputError(f"this is not `nvidia-smi -L` of one node: it lists more than {MOST_GPUS} devices")
    if not gpus:
        raise InputError("`nvidia-smi -L` lists no GPU")
    return tuple(replace(gpu, slices=tuple(found)) for gpu, found in zip(gpus, slices, strict=True))


def read_mig_profiles(text: str) -> tuple[MigProfile, ...]:
    """The profiles out of `nvidia-smi mig -lgip`, of the first GPU that it lists."""
    rows = [match for match in map(_PROFILE.match, bounded(text, "`nvidia-smi mig -lgip`").splitlines()) if match]
    if not rows:
        raise InputError("this is not `nvidia-smi mig -lgip`: no row names a MIG profile")
    return tuple(
        MigProfile(row[2], int(row[3]), int(row[5]), int(float(row[6]) * GIB), int(row[8]), row[7] == "Yes")
        for row in rows
        if row[1] == rows[0][1]
    )


def read_mig_instances(text: str) -> tuple[MigInstance, ...]:
    """The instances out of `nvidia-smi mig -lgi`; raises InputError for another text."""
    if "GPU instances" not in text:
        raise InputError("this is not `nvidia-smi mig -lgi`: no heading says GPU instances")
    rows = [match for match in map(_INSTANCE.match, bounded(text, "`nvidia-smi mig -lgi`").splitlines()) if match]
    return tuple(MigInstance(int(row[1]), row[2], int(row[3]), int(row[4])) for row in rows)


def read_query(text: str) -> tuple[GpuState, ...]:
    """The states out of what QUERY_COMMAND prints; raises InputError for another text."""
    what = "what nvidia-smi --query-gpu prints"
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(bounded(text, what).splitlines()) if row]
    except csv.Error as error:
        raise InputError(f"this is not {what}: {error}") from error
    for row in rows:
        if len(row) != len(QUERY) or whole_number(row[0]) is None:
            raise InputError(f"this is not {what}: {printable(','.join(row))!r}")
    if not rows:
        raise InputError("nvidia-smi --query-gpu lists no GPU")
    return tuple(_state(dict(zip(QUERY, row, strict=True))) for row in rows)


def _state(cells: Mapping[str, str]) -> GpuState:
    memory = _integer(cells["memory.total"])
    return GpuState(
        index=int(cells["index"]),
        name=cells["name"],
        uuid=cells["uuid"],
        memory_bytes=None if memory is None else memory * MIB,
        driver=cells["driver_version"],
        mig_enabled=_flag(cells["mig.mode.current"], "Enabled", "Disabled"),
        ecc_uncorrected=_integer(cells["ecc.errors.uncorrected.volatile.total"]),
        pending_retirement=_flag(cells["retired_pages.pending"], "Yes", "No"),
        remap_failed=_flag(cells["remapped_rows.failure"], "1", "0"),
        sm_clock_mhz=_integer(cells["clocks.sm"]),
        max_sm_clock_mhz=_integer(cells["clocks.max.sm"]),
        throttle_reasons=_integer(cells["clocks_throttle_reasons.active"]),
    )


def _integer(cell: str) -> int | None:
    """A whole number, decimal or 0x hexadecimal."""
    return int(cell, 16) if re.fullmatch(r"0x[0-9a-fA-F]{1,16}", cell) else whole_number(cell)


def _flag(cell: str, yes: str, no: str) -> bool | None:
    return {yes: True, no: False}.get(cell)


def uniform_profile(gpus: Sequence[ListedGpu]) -> tuple[str, int] | None:
    """(profile, slices to a GPU) where every GPU is cut the same way into one profile, else None."""
    cuts = {tuple(found.profile for found in gpu.slices) for gpu in gpus}
    if len(cuts) != 1:
        return None
    profiles = cuts.pop()
    return (profiles[0], len(profiles)) if len(set(profiles)) == 1 else None
