"""The result of a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from launcher.cost import Estimate
from launcher.layout import Layout, LayoutRequest
from launcher.layout.job import Job


@dataclass(frozen=True)
class Candidate:
    """A legal layout and its estimate."""

    layout: Layout
    estimate: Estimate


@dataclass(frozen=True)
class Refused:
    """The fastest layout that fits and is refused only by the software, with the reason."""

    candidate: Candidate
    why: str


@dataclass(frozen=True)
class SearchResult:
    """The best layouts, best first, and the number of others by reason.

    `searched` layouts were considered: the candidates, and those counted in `rejected`. A combination of degrees that
    is illegal in itself counts once, not once for every way to run it.
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
