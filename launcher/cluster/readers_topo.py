"""Reads `nvidia-smi topo -m`: which GPUs share NVLink, which NICs are near which GPU.

Format: https://docs.nvidia.com/deploy/nvidia-smi/ (topo). A cell that is no link type is "unknown", never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from launcher.errors import InputError
from launcher.text import bounded, printable

UNKNOWN = "unknown"
PCIE_NEAR_TO_FAR = ("PIX", "PXB", "PHB", "NODE", "SYS")
_LINK = re.compile(r"X|NV[0-9]{1,3}|PIX|PXB|PHB|NODE|SYS")
_GLUED = re.compile(
    r"((?:X|NV[0-9]{1,2}|PIX|PXB|PHB|NODE|SYS){2,})([0-9][0-9,-]*)?|(PIX|PXB|PHB|NODE|SYS)([0-9][0-9,-]*)"
)
_ONE = re.compile(r"X|NV[0-9]{1,2}|PIX|PXB|PHB|NODE|SYS")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")  # nvidia-smi underlines the heading on a terminal
_GPU = re.compile(r"GPU[0-9]{1,4}")
_HEADINGS = ("CPU Affinity", "NUMA Affinity", "GPU NUMA ID")
# No GPU so far has more: 18 in NVLink 4 and 5, 12 in NVLink 3, https://www.nvidia.com/en-us/data-center/nvlink/
MAX_LINKS_PER_GPU = 18
MOST_DEVICES = 256  # GPUs and NICs of one node
MOST_HEADINGS = 16  # lines that may be the heading


@dataclass(frozen=True)
class Topology:
    """The matrix of one node. `links[a][b]` is X, NV#, PIX, PXB, PHB, NODE, SYS or unknown.

    `nic_names` are the kernel's names of columns that are called NIC#. `cpu_affinity` and `numa` are per GPU, in
    order, as printed; `notes` says what could not be read.
    """

    gpus: tuple[str, ...]
    nics: tuple[str, ...]
    links: Mapping[str, Mapping[str, str]]
    cpu_affinity: tuple[str, ...]
    numa: tuple[str, ...]
    nic_names: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def nvlinks(self, a: int, b: int) -> int:
        """NVLinks between two GPUs, 0 where there are none."""
        link = self.links[self.gpus[a]][self.gpus[b]]
        return int(link[2:]) if link.startswith("NV") else 0

    def near_nics(self, gpu: int) -> tuple[str, ...]:
        """The NICs nearest to a GPU over PCIe; those behind the inter-socket link (SYS) count as far."""
        by_nic = {nic: self.links[self.gpus[gpu]].get(nic, UNKNOWN) for nic in self.nics}
        for link in PCIE_NEAR_TO_FAR[:-1]:
            if found := tuple(nic for nic, kind in by_nic.items() if kind == link):
                return found
        return ()


def read_topo(text: str) -> Topology:
    """The matrix out of the text; raises InputError where the GPU part cannot be read."""
    text = _ANSI.sub("", bounded(text, "`nvidia-smi topo -m`"))
    devices, rows, glued = _matrix(text.splitlines())
    gpus = tuple(device for device in devices if _GPU.fullmatch(device))
    nics = tuple(device for device in devices if device not in gpus)
    links, mangled = _links(devices, rows)
    if gaps := [(a, b) for a, b in combinations(gpus, 2) if links[a][b] == UNKNOWN]:
        raise InputError(_illegible(gaps, rows))
    num_headings = sum(heading in text for heading in _HEADINGS)
    tails = [_tail(rows.get(gpu, ())[len(devices) :], num_headings) for gpu in gpus]
    return Topology(
        gpus=gpus,
        nics=nics,
        links=links,
        cpu_affinity=tuple(tail[0] for tail in tails),
        numa=tuple(tail[1] for tail in tails),
        nic_names=dict(re.findall(r"^[ \t]*(NIC[0-9]{1,4}): (\S{1,40})", text, flags=re.MULTILINE)),
        notes=_notes(mangled, rows, devices, glued),
    )


def _matrix(lines: Sequence[str]) -> tuple[tuple[str, ...], dict[str, list[str]], list[str]]:
    """The devices of the heading, the cells of their rows, and those that were glued together.

    Of several lines that begin with a GPU and name no link, the heading is the one with most links below it: a prompt,
    a remark or another matrix (`topo -p2p`) may come first.
    """
    best: tuple[int, tuple[str, ...], dict[str, list[str]], list[str]] = (0, (), {}, [])
    for index in [index for index, line in enumerate(lines) if _heading(line)][:MOST_HEADINGS]:
        devices = _heading(lines[index])
        if len(devices) > MOST_DEVICES or len(set(devices)) < len(devices):
            continue
        rows, glued = _rows(devices, lines[index + 1 :])
        score = sum(bool(_LINK.fullmatch(cell)) for cells in rows.values() for cell in cells[: len(devices)])
        if score > best[0] or (not best[1] and rows):
            best = score, devices, rows, glued
    if not best[1]:
        raise InputError("this is not `nvidia-smi topo -m`: no heading line that starts with GPU0, with rows below it")
    return best[1:]


def _heading(line: str) -> tuple[str, ...]:
    """The devices that a line names if it can be a heading."""
    for words in _HEADINGS:
        line = line.replace(words, "")
    tokens = line.split()
    if not tokens or not _GPU.fullmatch(tokens[0]) or any(_LINK.fullmatch(token) for token in tokens):
        return ()
    return tuple(printable(token, longest=40) for token in tokens)


def _rows(devices: Sequence[str], lines: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The cells of each device's row, glued ones apart (`SYSSYS`, `SYS0-31`)."""
    rows: dict[str, list[str]] = {}
    glued = []
    for line in lines:
        tokens = line.split()
        if not tokens or tokens[0] not in devices or tokens[0] in rows:
            continue
        if not any(_LINK.match(token) for token in tokens[1:]):
            continue  # a remark
        cells = rows[tokens[0]] = []
        for token in tokens[1:]:
            match = _GLUED.fullmatch(token) if len(cells) < len(devices) else None
            glued += [token] if match else []
            cells += [token] if match is None else _apart(match)
    return rows, glued


def _apart(match: re.Match[str]) -> list[str]:
    links, tail = match[1] or match[3], match[2] or match[4]
    return [*_ONE.findall(links), *([tail] if tail else [])]


def _links(
    devices: Sequence[str], rows: Mapping[str, Sequence[str]]
) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """The matrix, and for each row with a cell that is no link type, that cell. The matrix is symmetric, and the other
    half fills what one half lacks."""
    links = {a: {b: "X" if a == b else UNKNOWN for b in devices} for a in devices}
    mangled: dict[str, str] = {}
    for device, cells in rows.items():
        for other, cell in zip(devices, cells, strict=False):
            if not _LINK.fullmatch(cell):
                mangled[device] = cell
                break
            links[device][other] = cell
    for a, b in combinations(devices, 2):
        if links[a][b] == UNKNOWN:
            links[a][b] = links[b][a]
        if links[b][a] == UNKNOWN:
            links[b][a] = links[a][b]
    return links, mangled


def _tail(cells: Sequence[str], num_headings: int) -> tuple[str, str]:
    """(CPU affinity, NUMA node) behind the matrix; unknown where a cell is empty, since the others then shift."""
    if len(cells) != num_headings:
        return UNKNOWN, UNKNOWN
    known = [cell if re.fullmatch(r"[0-9,-]+", cell) else UNKNOWN for cell in (*cells, UNKNOWN, UNKNOWN)]
    return known[0], known[1]


def _illegible(gaps: Sequence[tuple[str, str]], rows: Mapping[str, Sequence[str]]) -> str:
    named = sorted({device for pair in gaps for device in pair if device not in rows})
    cause = f"the row of {', '.join(named)} is missing" if named else f"no link between {gaps[0][0]} and {gaps[0][1]}"
    return f"this `nvidia-smi topo -m` is not whole ({cause}): give the whole output"


def _notes(
    mangled: Mapping[str, str], rows: Mapping[str, Sequence[str]], devices: Sequence[str], glued: Sequence[str]
) -> tuple[str, ...]:
    notes = []
    if glued:
        cells = ", ".join(printable(cell, longest=20) for cell in sorted(set(glued))[:4])
        notes.append(f"nvidia-smi topo -m: cells are glued together ({cells}): read as the links that they are made of")
    if mangled:
        cells = ", ".join(printable(cell, longest=20) for cell in sorted(set(mangled.values()))[:4])
        notes.append(
            f"nvidia-smi topo -m: {len(mangled)} rows are mangled ({cells} is no link type): "
            "their CPU and NUMA affinity is unknown"
        )
    if missing := [device for device in devices if device not in rows]:
        shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        notes.append(f"nvidia-smi topo -m: the rows of {shown} are missing; the other rows say their links")
    return tuple(notes)


def nvlink_domains(topology: Topology) -> tuple[tuple[int, ...], ...] | None:
    """Sets of GPUs joined any-to-any by NVLink; None where NVLink joins some GPUs only in part (a hybrid mesh)."""
    num_gpus = len(topology.gpus)
    peers = {a: {b for b in range(num_gpus) if a == b or topology.nvlinks(a, b)} for a in range(num_gpus)}
    if any(peers[a] != peers[b] for a in range(num_gpus) for b in peers[a]):
        return None
    return tuple(dict.fromkeys(tuple(sorted(group)) for group in peers.values()))


def nvlink_kind(topology: Topology) -> str:
    """nvswitch, direct, none or unknown.

    Through a switch every peer sees all of a GPU's links, so that they add up to more than a GPU has; wired directly
    they are shared out. One pair looks the same either way: unknown (a bridge where the GPUs are PCIe cards).
    """
    counts = [[topology.nvlinks(a, b) for b in range(len(topology.gpus)) if a != b] for a in range(len(topology.gpus))]
    peers = max((sum(n > 0 for n in row) for row in counts), default=0)
    if peers == 0:
        return "none"
    if max(sum(row) for row in counts) > MAX_LINKS_PER_GPU:
        return "nvswitch"
    return "direct" if peers > 1 else UNKNOWN
