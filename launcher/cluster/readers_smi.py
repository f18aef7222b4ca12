"""Reads `nvidia-smi -L`, `nvidia-smi mig -lgip` and `nvidia-smi --query-gpu=… --format=csv`."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.errors import InputError
from launcher.units import GIB, MIB

_GPU = re.compile(r"GPU (\d+): (.+?) \(UUID: (GPU-[\w-]+)\)")
_MIG = re.compile(r"\s+MIG (\S+)\s+Device\s+(\d+): \(UUID: (MIG-[\w/-]+)\)")
_PROFILE = re.compile(r"\|\s+(\d+)\s+MIG (\S+)\s+(\d+)\s+(\d+)/(\d+)\s+([\d.]+)\s+(Yes|No)\s+(\d+)")


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
    """What the driver says about one GPU; None where it says nothing ([N/A], or an older driver)."""

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


_INSTANCE = re.compile(r"\|\s+(\d+)\s+MIG (\S+)\s+\d+\s+\d+\s+(\d+):(\d+)\s+\|")
QUERY = (
    "index", "name", "uuid", "memory.total", "driver_version", "mig.mode.current",
    "ecc.errors.uncorrected.volatile.total", "retired_pages.pending", "remapped_rows.failure",
    "clocks.sm", "clocks.max.sm", "clocks_throttle_reasons.active",
)  # fmt: skip
QUERY_COMMAND = ("nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits")


def read_list(text: str) -> tuple[ListedGpu, ...]:
    """GPUs and their MIG slices out of `nvidia-smi -L`; raises InputError for another text."""
    gpus: list[ListedGpu] = []
    for line in text.splitlines():
        if match := _GPU.match(line):
            gpus.append(ListedGpu(int(match[1]), match[2], match[3]))
        elif (match := _MIG.match(line)) and gpus:
            last = gpus.pop()
            found = MigSlice(match[1], int(match[2]), match[3])
            gpus.append(ListedGpu(last.index, last.name, last.uuid, (*last.slices, found)))
        elif line.strip():
            raise InputError(f"this is not `nvidia-smi -L`: {line.strip()[:80]!r} names no GPU")
    if not gpus:
        raise InputError("`nvidia-smi -L` lists no GPU")
    return tuple(gpus)


def read_mig_profiles(text: str) -> tuple[MigProfile, ...]:
    """The profiles out of `nvidia-smi mig -lgip`, of the first GPU that it lists."""
    rows = [match for match in map(_PROFILE.match, text.splitlines()) if match]
    if not rows:
        raise InputError("this is not `nvidia-smi mig -lgip`: no row names a MIG profile")
    return tuple(
        MigProfile(row[2], int(row[5]), int(float(row[6]) * GIB), int(row[8]), row[7] == "Yes")
        for row in rows
        if row[1] == rows[0][1]
    )


def read_mig_instances(text: str) -> tuple[MigInstance, ...]:
    """The instances out of `nvidia-smi mig -lgi`; raises InputError for another text."""
    if "GPU instances" not in text:
        raise InputError("this is not `nvidia-smi mig -lgi`: no heading says GPU instances")
    rows = [match for match in map(_INSTANCE.match, text.splitlines()) if match]
    return tuple(MigInstance(int(row[1]), row[2], int(row[3]), int(row[4])) for row in rows)


def read_query(text: str) -> tuple[GpuState, ...]:
    """The states out of what QUERY_COMMAND prints; raises InputError for another text."""
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]
    for row in rows:
        if len(row) != len(QUERY) or not row[0].isdigit():
            raise InputError(f"this is not what nvidia-smi --query-gpu prints: {','.join(row)[:80]!r}")
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
    return int(cell, 0) if re.fullmatch(r"\d+|0x[0-9a-fA-F]+", cell) else None


def _flag(cell: str, yes: str, no: str) -> bool | None:
    return {yes: True, no: False}.get(cell)


def uniform_profile(gpus: Sequence[ListedGpu]) -> tuple[str, int] | None:
    """(profile, slices to a GPU) where every GPU is cut the same way into one profile, else None."""
    cuts = {tuple(found.profile for found in gpu.slices) for gpu in gpus}
    if len(cuts) != 1:
        return None
    profiles = cuts.pop()
    return (profiles[0], len(profiles)) if len(set(profiles)) == 1 else None
