"""The Python API: Hydra overrides in, frozen values out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launcher.config.settings import Settings
    from launcher.cost import Estimate
    from launcher.layout import Layout
    from launcher.planner import Plan
    from launcher.planner.result import SearchResult


@dataclass(frozen=True)
class ConfiguredJob:
    """A configured job: model, cluster, and the pinned part of the layout. `launcher.Job` is this class.

    job = Job.from_overrides(["cluster=dgx_a100_80g", "model=gpt3_1b3"])
    job.with_("layout.tp=4").estimate().step_time_s
    """

    overrides: tuple[str, ...]
    settings: Settings

    @classmethod
    def from_overrides(cls, overrides: Sequence[str] = ()) -> ConfiguredJob:
        """Make the job of these overrides; raises InputError with everything that is wrong."""
        from launcher.config.compose import load

        return cls(tuple(overrides), load(overrides))

    def with_(self, *overrides: str) -> ConfiguredJob:
        """Return the same job with these overrides, each replacing an earlier one of its key."""
        keys = {word.partition("=")[0] for word in overrides}
        kept = [word for word in self.overrides if word.partition("=")[0] not in keys]
        return ConfiguredJob.from_overrides([*kept, *overrides])

    def estimate(self, layout: Layout | None = None) -> Estimate:
        """Estimate a layout. Without one, every key that is not pinned takes its default, and dp fills the cluster.

        Raises InputError if the layout is illegal; a layout that does not fit is estimated with `fits=False`.
        """
        from launcher.cost.model import CostModel
        from launcher.errors import InputError
        from launcher.layout.legality import problems
        from launcher.layout.resolve import plain_layout

        job = self.settings.job
        layout = layout or plain_layout(job, self.settings.request)
        if found := problems(job, layout):
            raise InputError(found)
        return CostModel(job).estimate(layout)

    def search(self, *, top: int | None = None) -> SearchResult:
        """Search the best layouts, and count why others were rejected; raises NoLayoutFits if nothing fits."""
        from launcher.planner.build import limits
        from launcher.planner.search import search

        settings = self.settings
        refuse = limits(settings.job, settings.run_options)
        return search(settings.job, settings.request, top=top or settings.options.top, refuse=refuse)

    def plan(self) -> Plan:
        """Return the best plan of a search over all keys that are not pinned; raises NoLayoutFits if nothing fits."""
        from launcher.planner.build import make_plan

        return make_plan(self.settings.job, self.settings.request, self.settings.run_options)


def estimate(overrides: Sequence[str]) -> Estimate:
    """Estimate one layout, as `ConfiguredJob.estimate`."""
    return ConfiguredJob.from_overrides(overrides).estimate()


def plan(overrides: Sequence[str]) -> Plan:
    """Return the best plan of a search over every layout key that is not pinned.

    Raises InputError for wrong input and NoLayoutFits if nothing fits.
    """
    return ConfiguredJob.from_overrides(overrides).plan()
