"""How whole GPUs can be cut by MIG: the table of profiles, and which of them fit one GPU together."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

TABLE = Path(__file__).parent / "mig_profiles.csv"
# Cards of the table → entries of configs/gpu.
ENTRIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "a100_40g": ("a100_sxm_40g", "a100_pcie_40g"), "a100_80g": ("a100_sxm_80g", "a100_pcie_80g"), "a30": ("a30",),
        "h100_80g": ("h100_sxm",),
    }
)  # fmt: skip


@dataclass(frozen=True)
class Profile:
    """A row of the table: how many instances fit a GPU, what one has, and where it can start, in memory slices.

    `size`: memory slices of an instance, of `slices` that the GPU has.
    """

    name: str
    profile_id: int
    instances: int
    memory_gib: float
    num_sms: int
    size: int
    starts: tuple[int, ...]
    slices: int

    @property
    def compute(self) -> int:
        """Compute slices: 3 of 3g.40gb."""
        return int(self.name.partition("g.")[0])


@lru_cache(maxsize=1)
def profiles_by_card() -> Mapping[str, tuple[Profile, ...]]:
    """Card of the table → its profiles, without those that differ by media engines alone."""
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    rows = [row for row in csv.DictReader(lines) if "+" not in row["profile"]]
    slices = {row["card"]: int(row["size"]) for row in sorted(rows, key=lambda row: int(row["size"]))}
    found: dict[str, list[Profile]] = {}
    for row in rows:
        numbers = {name: int(row[name]) for name in ("instances", "size")}
        found.setdefault(row["card"], []).append(
            Profile(
                name=row["profile"],
                profile_id=int(row["id"]),
                memory_gib=float(row["memory_gib"]),
                num_sms=int(row["sms"]),
                starts=tuple(map(int, row["starts"].split())),
                slices=slices[row["card"]],
                **numbers,
            )
        )
    return MappingProxyType({card: tuple(each) for card, each in found.items()})


def profiles_of(entry: str) -> tuple[Profile, ...]:
    """The profiles of an entry of configs/gpu; none where it has no MIG."""
    card = next((card for card, entries in ENTRIES.items() if entry in entries), "")
    return profiles_by_card().get(card, ())


def placed(profiles: Sequence[Profile]) -> tuple[int, ...] | None:
    """Where instances of these profiles start if they share a GPU, in their order; None where they do not fit."""
    order = sorted(range(len(profiles)), key=lambda index: -profiles[index].size)
    if profiles and sum(each.compute for each in profiles) > _compute_slices(profiles[0]):
        return None
    starts = _placed([profiles[index] for index in order], frozenset())
    return None if starts is None else tuple(start for _, start in sorted(zip(order, starts, strict=True)))


def _compute_slices(profile: Profile) -> int:
    """Of a GPU: seven where it has eight memory slices, as many as those otherwise (A30)."""
    return 7 if profile.slices == 8 else profile.slices


def _placed(profiles: Sequence[Profile], taken: frozenset[int]) -> list[int] | None:
    """The largest first; the last places first, since small ones have the most."""
    if not profiles:
        return []
    first = profiles[0]
    for start in reversed(first.starts):
        covered = frozenset(range(start, start + first.size))
        if not covered & taken and (rest := _placed(profiles[1:], taken | covered)) is not None:
            return [start, *rest]
    return None
