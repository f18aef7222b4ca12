"""The Python API: Hydra overrides in, frozen values out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launcher.config.settings import Settings
    from launcher.cost import Estimate
    from launcher.layout import Layout
    from launcher.planner import Plan
    from launcher.planner.compare import Comparison
    from launcher.planner.result import SearchResult


@dataclass(frozen=True, repr=False)
class ConfiguredJob:
    """A configured job: model, cluster, and the pinned part of the layout. `launcher.Job` is this class.

    job = Job.from_overrides(["cluster=dgx_a100_80g", "model=gpt3_1b3"])
    job.with_("layout.tp=4").estimate().step_time_s
    """

    overrides: tuple[str, ...]
    settings: Settings

    def __repr__(self) -> str:
        return f"Job.from_overrides({list(self.overrides)})"

    @classmethod
    def from_overrides(cls, overrides: Sequence[str] = ()) -> ConfiguredJob:
        """Make the job of these overrides; raises InputError with everything that is wrong."""
        from launcher.config.compose import load

        return cls(tuple(overrides), load(overrides))

    def with_(self, *overrides: str) -> ConfiguredJob:
        """Return the same job with these overrides, each replacing an earlier one of its key.

        Raises InputError with everything that is wrong.
        """
        keys = {word.partition("=")[0] for word in overrides}
        kept = [word for word in self.overrides if word.partition("=")[0] not in keys]
        return ConfiguredJob.from_overrides([*kept, *overrides])

    def estimate(self, layout: Layout | None = None) -> Estimate:
        """Estimate a layout: seconds a step, bytes a GPU, tokens/s a GPU (`launcher.cost.Estimate` names the units).

        Without a layout every key that is not pinned takes its default, and dp fills the cluster. A layout that does
        not fit is estimated with `fits=False`. Raises InputError if the layout is illegal.
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
        """Search the best `top` layouts (default: the key top), and count why others were rejected.

        Raises InputError if no layout is legal, and NoLayoutFits if none fits.
        """
        from launcher.planner.build import limits
        from launcher.planner.search import search

        settings = self.settings
        refuse = limits(settings.job, settings.run_options)
        return search(settings.job, settings.request, top=top or settings.options.top, refuse=refuse)

    def why_not(self, question: str) -> str:
        """Say why a layout, as `tp=4,pp=16`, is not the first choice.

        Raises InputError if the layout is not understood, and NoLayoutFits if no layout fits.
        """
        from launcher.cost.model import CostModel
        from launcher.planner.build import limits
        from launcher.planner.why_not import why_not

        refuse = limits(self.settings.job, self.settings.run_options)
        return why_not(self.search(), question, CostModel(self.settings.job), refuse=refuse)

    def compare(self, *others: ConfiguredJob, tokens: float | None = None) -> Comparison:
        """Compare the best plans of this job and others by tokens/s.

        For `tokens` training tokens also by days, GPU-hours and USD. A job that no layout is legal for, or fits, is a
        row without a plan, and its note says why.
        """
        from launcher.planner.compare import compare

        jobs = (self, *others)
        return compare([(" ".join(j.overrides), j.settings.job, j.settings.request) for j in jobs], tokens=tokens)

    def plan(self) -> Plan:
        """Return the best plan of a search over all keys that are not pinned.

        Raises InputError if no layout is legal, and NoLayoutFits if none fits.
        """
        from launcher.planner.build import make_plan

        return make_plan(self.settings.job, self.settings.request, self.settings.run_options)


def save_plan(plan: Plan, file: str | Path) -> None:
    """Write a plan for `plan=FILE` of the commands; raises OSError if that is not possible."""
    from launcher.planner import write_plan

    write_plan(plan, Path(file))


def load_plan(file: str | Path) -> Plan:
    """Read a plan from its file or its run folder; raises InputError if there is none, or none of this version."""
    from launcher.planner import read_plan
    from launcher.run.folder import plan_file

    return read_plan(plan_file(Path(file)))


def export_plan(plan: Plan, *, to: str) -> Mapping[str, str]:
    """Return the files, by name, that say a plan in another tool's terms; raises InputError if the tool cannot."""
    from launcher.export.planning import check
    from launcher.export.targets import target

    tool = target(to)
    check(plan, tool)
    return tool.write(plan).files


def report_plan(plan: Plan) -> str:
    """Return one self-contained HTML page about a plan, as text; of a program without a model: where its ranks are."""
    from launcher.report.html import page

    return page(plan)


def estimate(overrides: Sequence[str]) -> Estimate:
    """Estimate one layout, as `Job.estimate`; raises InputError for wrong input or an illegal layout."""
    return ConfiguredJob.from_overrides(overrides).estimate()


def plan(overrides: Sequence[str]) -> Plan:
    """Return the best plan of a search over every layout key that is not pinned.

    Raises InputError for wrong input and NoLayoutFits if nothing fits.
    """
    return ConfiguredJob.from_overrides(overrides).plan()
