"""Reads `lspci` (plain, -nn, -v or -vv): GPUs and network adapters by bus id, with the width of their links.

Format: https://man7.org/linux/man-pages/man8/lspci.8.html
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from launcher.errors import InputError
from launcher.text import bounded, printable

_DEVICE = re.compile(
    r"((?:[0-9a-f]{4}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]) ([^:\[\n]{1,60})(?: \[([0-9a-f]{4})\])?: ([^\n]{1,300})"
)
_ID = re.compile(r"\[([0-9a-f]{4}:[0-9a-f]{4})\]")
_WIDTH = re.compile(r"\s+Lnk(Cap|Sta):.*?Width x([0-9]{1,2})\b")
_NUMA = re.compile(r"\s+NUMA node: ([0-9]{1,4})\b")
_GPU_KINDS = ("3D controller", "VGA compatible controller", "Display controller")
_NIC_KINDS = ("Infiniband controller", "Ethernet controller", "Network controller", "InfiniBand controller")
MOST_CARDS = 1024


@dataclass(frozen=True)
class PciCard:
    """A GPU of NVIDIA or a network adapter. `width` and `full_width` are PCIe lanes, 0 where not said."""

    busid: str
    is_gpu: bool
    name: str
    device_id: str
    numa: int | None = None
    width: int = 0
    full_width: int = 0


def read_lspci(text: str) -> tuple[PciCard, ...]:
    """The GPUs and network adapters out of the text; raises InputError for another text."""
    found: list[PciCard] = []
    seen, card = False, None
    for line in bounded(text, "`lspci`").splitlines():
        if match := _DEVICE.match(line):
            seen = True
            card = _card(match)
            if card is not None:
                found.append(card)
        elif card is not None and (match := _WIDTH.match(line)):
            lanes = int(match[2])
            card = replace(card, full_width=lanes) if match[1] == "Cap" else replace(card, width=lanes)
            found[-1] = card
        elif card is not None and (match := _NUMA.match(line)):
            card = found[-1] = replace(card, numa=int(match[1]))
        if len(found) > MOST_CARDS:
            raise InputError(f"this is not `lspci` of one node: it lists more than {MOST_CARDS} GPUs and adapters")
    if not seen:
        raise InputError("this is not `lspci`: no line starts with a bus id")
    return tuple(found)


def _card(match: re.Match[str]) -> PciCard | None:
    kind, text = match[2].strip(), match[4]
    ids = _ID.findall(text)
    is_gpu = kind in _GPU_KINDS and "NVIDIA" in text
    if not is_gpu and kind not in _NIC_KINDS:
        return None
    name = re.sub(r"\s*\(rev [0-9a-f]{2}\).*", "", _ID.sub("", text)).strip()
    unnamed = re.fullmatch(r"NVIDIA Corporation Device ([0-9a-f]{4})", name)  # of a card that is newer than pci.ids
    return PciCard(match[1], is_gpu, printable(name), ids[-1] if ids else f"10de:{unnamed[1]}" if unnamed else "")
