"""The result of a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from launcher.cost import Estimate
from launcher.layout import Layout, LayoutRequest
from launcher.layout.job import Job
from launcher.units import format_seconds


@dataclass(frozen=True)
class Candidate:
    """A legal layout and its estimate."""

    layout: Layout
    estimate: Estimate

    def __repr__(self) -> str:
        return f"<Candidate {self.layout.brief()}, {format_seconds(self.estimate.step_time_s)} a step>"


@dataclass(frozen=True)
class Refused:
    """The fastest layout that fits and is refused only by the software, with the reason."""

    candidate: Candidate
    why: str


@dataclass(frozen=True)
class SearchResult:
    """The best layouts, best first, and the number of others by reason.

    `searched` layouts were considered: the candidates, and those counted in `rejected`. A combination of degrees that
    is illegal in itself counts once, not once for every way to run it. `without_offload`: where the search decided to
    offload, the best without it, if any fits.
    """

    job: Job
    request: LayoutRequest
    candidates: tuple[Candidate, ...]
    rejected: Mapping[str, int]
    searched: int
    refused: Refused | None = None
    without_offload: Candidate | None = None

    def __repr__(self) -> str:
        job = f"{self.job.model.name} on {self.job.cluster.name}"
        return f"<SearchResult {job}: the best {len(self.candidates)} of {self.searched:,} layouts, {self.best}>"

    @property
    def best(self) -> Candidate:
        return self.candidates[0]
