"""Reads the table that plain `nvidia-smi` prints: the GPUs of a node, and whether MIG is on.

Names are cut where a column ends (`NVIDIA A100-SXM...`): with the memory they are mostly plain again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from launcher.errors import InputError
from launcher.text import bounded, printable

_GPU = re.compile(
    r"^\|\s+([0-9]{1,4})\s+(\S.{0,40}?)\s+(?:On|Off|N/A)\s+\|\s*([0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9])"
)
_MEMORY = re.compile(r"([0-9]{1,9})MiB\s*/\s*([0-9]{1,9})MiB")
MOST_GPUS = 1024


@dataclass(frozen=True)
class TableGpu:
    """One GPU of the table. `memory_mib` is 0 and `mig_enabled` None where the rows below do not say it."""

    name: str
    busid: str
    memory_mib: int = 0
    mig_enabled: bool | None = None


def read_smi_table(text: str) -> tuple[TableGpu, ...]:
    """The GPUs out of the table; raises InputError for another text."""
    found: list[TableGpu] = []
    rows = 0  # since the last GPU
    for line in bounded(text, "the table of `nvidia-smi`").splitlines():
        if match := _GPU.match(line):
            found.append(TableGpu(printable(match[2]), match[3].lower()))
            rows = 0
        elif found and line.startswith("|"):
            rows += 1
            found[-1] = _more(found[-1], line) if rows <= 2 else found[-1]
        elif line.startswith("+"):
            rows = 3
        if len(found) > MOST_GPUS:
            raise InputError(f"this is not `nvidia-smi` of one node: it lists more than {MOST_GPUS} GPUs")
    if not found:
        raise InputError("this is not the table of `nvidia-smi`: no row has a GPU with its bus id")
    return tuple(found)


def _more(gpu: TableGpu, line: str) -> TableGpu:
    memory, state = _MEMORY.search(line), line.rstrip(" |").rsplit(" ", 1)[-1]
    mib = int(memory[2]) if memory and not gpu.memory_mib else gpu.memory_mib
    mig = {"Enabled": True, "Disabled": False}.get(state, gpu.mig_enabled)
    return TableGpu(gpu.name, gpu.busid, mib, mig)
