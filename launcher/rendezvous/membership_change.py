"""How the nodes of a round differ from those of the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class MembershipChange:
    """The difference between a round and the plan: absent nodes, and nodes on other hosts."""

    absent: tuple[int, ...] = ()
    moved: Mapping[int, str] = field(default_factory=dict)

    @property
    def as_planned(self) -> bool:
        return not self.absent and not self.moved
