"""Reads `nvidia-smi -q`: the GPUs of a node with their bus ids, memory and MIG mode.

Format: https://docs.nvidia.com/deploy/nvidia-smi/ (-q). Lines are `key : value`, indented under headings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from launcher.errors import InputError
from launcher.text import bounded, printable, whole_number
from launcher.units import MIB

_GPU = re.compile(r"GPU ([0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9])")
_PAIR = re.compile(r"([^:]{1,60}?)\s*: (.{0,200})")
MOST_CHARACTERS = 16 * 2**20


@dataclass(frozen=True)
class LoggedGpu:
    """One GPU of the log; None where it says nothing."""

    busid: str
    name: str
    uuid: str | None
    memory_bytes: int | None
    mig_enabled: bool | None
    pcie_width: int | None
    full_pcie_width: int | None


def read_query_log(text: str) -> tuple[LoggedGpu, ...]:
    """The GPUs out of `nvidia-smi -q`; raises InputError for another text."""
    lines = bounded(text, "`nvidia-smi -q`", most=MOST_CHARACTERS).splitlines()
    starts = [(index, match[1]) for index, line in enumerate(lines) if (match := _GPU.match(line))]
    found = []
    for (start, busid), (end, _) in pairwise([*starts, (len(lines), "")]):
        values = dict(_values(lines[start + 1 : end]))
        if "Product Name" in values:
            found.append(_gpu(busid, values))
    if not found:
        raise InputError("this is not `nvidia-smi -q`: no GPU has a Product Name")
    return tuple(found)


def _values(lines: list[str]) -> Iterator[tuple[str, str]]:
    """`heading/heading/key` → value, headings by their indentation; the first of a key counts."""
    path: list[tuple[int, str]] = []
    seen = set()
    for line in lines:
        indent = len(line) - len(line.lstrip())
        path = [(depth, name) for depth, name in path if depth < indent]
        if match := _PAIR.fullmatch(line.strip()):
            key = "/".join([*(name for _, name in path), match[1].strip()])
            if key not in seen:
                seen.add(key)
                yield key, match[2].strip()
        elif line.strip():
            path.append((indent, line.strip()))


def _gpu(busid: str, values: Mapping[str, str]) -> LoggedGpu:
    memory = whole_number(values.get("FB Memory Usage/Total", "").removesuffix(" MiB"))
    width = "PCI/GPU Link Info/Link Width"
    mode = values.get("MIG Mode/Current")
    return LoggedGpu(
        busid=busid.lower(),
        name=printable(values["Product Name"]),
        uuid=printable(values["GPU UUID"]) if "GPU UUID" in values else None,
        memory_bytes=None if memory is None else memory * MIB,
        mig_enabled={"Enabled": True, "Disabled": False}.get(mode or ""),
        pcie_width=whole_number(values.get(f"{width}/Current", "").removesuffix("x")),
        full_pcie_width=whole_number(values.get(f"{width}/Max", "").removesuffix("x")),
    )
