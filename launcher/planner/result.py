"""What a search found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from launcher.cost import Estimate
from launcher.layout import Layout, LayoutRequest
from launcher.layout.job import Job


@dataclass(frozen=True)
class Candidate:
    """A legal layout and what it costs."""

    layout: Layout
    estimate: Estimate


@dataclass(frozen=True)
class Refused:
    """The fastest layout that fits and that only the software cannot run, with the reason."""

    candidate: Candidate
    why: str


@dataclass(frozen=True)
class SearchResult:
    """The best layouts, best first, and what became of all the others.

    `searched` layouts were considered: the candidates, and those counted in `rejected` by reason. Combinations of
    degrees that are illegal in themselves count once each, not once for every way to run them.
    """

    job: Job
    request: LayoutRequest
    candidates: tuple[Candidate, ...]
    rejected: Mapping[str, int]
    searched: int
    refused: Refused | None = None

    @property
    def best(self) -> Candidate:
        return self.candidates[0]
