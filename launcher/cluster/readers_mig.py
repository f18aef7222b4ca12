"""Reads `nvidia-smi mig -lgipp` and the configuration of nvidia-mig-parted: how GPUs can be, or are to be, cut.

https://docs.nvidia.com/datacenter/tesla/mig-user-guide/, https://github.com/NVIDIA/mig-parted
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from launcher.cluster.plain_yaml import plain_yaml
from launcher.errors import InputError
from launcher.text import bounded, printable

_PLACES = re.compile(r"GPU\s+([0-9]{1,4}) Profile ID\s+([0-9]{1,4}) Placements?\s*: \{([0-9,]{1,80})\}:([0-9]{1,2})")
_PROFILE = re.compile(r"[0-9]{1,2}g\.[0-9]{1,4}gb([+-][a-z.]{1,12})?")
MOST_SLICES = 64


@dataclass(frozen=True)
class MigPlacement:
    """The possible start positions of a profile's instances, in memory slices, and the slices per instance."""

    gpu: int
    profile_id: int
    starts: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class MigGeometry:
    """A partitioning of some GPUs. `gpus`: their indices, None for all; `cards`: their PCI ids, () for any.

    `slices`: profile → how many; empty where MIG is off, or on without slices.
    """

    gpus: tuple[int, ...] | None
    enabled: bool
    slices: Mapping[str, int]
    cards: tuple[str, ...] = ()


def read_mig_placements(text: str) -> tuple[MigPlacement, ...]:
    """The rows of `nvidia-smi mig -lgipp`; raises InputError for another text."""
    rows = [match for match in map(_PLACES.match, bounded(text, "`nvidia-smi mig -lgipp`").splitlines()) if match]
    if not rows:
        raise InputError("this is not `nvidia-smi mig -lgipp`: no row names placements")
    return tuple(
        MigPlacement(int(row[1]), int(row[2]), tuple(int(start) for start in row[3].split(",") if start), int(row[4]))
        for row in rows
    )


def read_mig_parted(text: str) -> dict[str, tuple[MigGeometry, ...]]:
    """The named geometries of a mig-parted file; raises InputError for another text."""
    what = "a mig-parted configuration"
    data = plain_yaml(bounded(text, what, most=2**18), what)
    configs = data.get("mig-configs") if isinstance(data, dict) else None
    if not isinstance(configs, dict):
        raise InputError(f"this is not {what}: it has no mig-configs")
    return {printable(str(name)): tuple(map(_geometry, _list(name, parts))) for name, parts in configs.items()}


def _list(name: Any, parts: Any) -> list[Mapping[str, Any]]:
    if isinstance(parts, list) and all(isinstance(part, dict) for part in parts):
        return parts
    raise InputError(f"mig-parted's {printable(str(name))!r} must be a list of devices and how they are cut")


def _geometry(part: Mapping[str, Any]) -> MigGeometry:
    devices, slices = part.get("devices", "all"), part.get("mig-devices") or {}
    gpus = None if devices == "all" else tuple(devices) if isinstance(devices, list) else (devices,)
    if gpus is not None and not all(isinstance(gpu, int) and 0 <= gpu < 1024 for gpu in gpus):
        raise InputError(f"mig-parted's devices must be `all` or numbers of GPUs, not {printable(str(devices))}")
    good = isinstance(slices, dict) and all(
        _PROFILE.fullmatch(str(profile)) and isinstance(count, int) and 0 <= count <= MOST_SLICES
        for profile, count in slices.items()
    )
    if not good:
        raise InputError(f"mig-parted's mig-devices must be profiles and numbers, not {printable(str(slices))}")
    cards = part.get("device-filter", [])
    cards = cards if isinstance(cards, list) else [cards]
    return MigGeometry(
        gpus, bool(part.get("mig-enabled")), MappingProxyType(dict(slices)), tuple(printable(str(c)) for c in cards)
    )
