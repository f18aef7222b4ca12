"""Makes rows of mig_profiles.csv: python -m launcher.cluster.mig_table CARD LGIP.txt LGIPP.txt"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from launcher.cluster.readers_mig import read_mig_placements
from launcher.cluster.readers_smi import read_mig_profiles
from launcher.units import GIB


def rows(card: str, profiles: str, places: str) -> Iterator[str]:
    """One line of the table for each profile of `-lgip`, with its places of `-lgipp`."""
    found = {place.profile_id: place for place in read_mig_placements(places)}
    for profile in read_mig_profiles(profiles):
        place = found[profile.profile_id]
        starts = " ".join(map(str, place.starts))
        memory = f"{profile.memory_bytes / GIB:.2f}".rstrip("0").rstrip(".")
        numbers = (profile.profile_id, profile.instances, memory, profile.num_sms, place.size)
        yield ",".join([card, profile.name, *map(str, numbers), starts])


def main(card: str, profiles: str, places: str) -> None:
    print("\n".join(rows(card, Path(profiles).read_text(encoding="utf-8"), Path(places).read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main(*sys.argv[1:])
