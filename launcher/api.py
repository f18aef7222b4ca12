"""The Python API: Hydra overrides in, frozen values out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from launcher.config.compose import load
from launcher.config.settings import OTHER_NAMES, Configuration, Settings
from launcher.cost import Estimate
from launcher.cost.model import CostModel
from launcher.errors import InputError
from launcher.export.folder import write_folder
from launcher.export.planning import express
from launcher.export.target import Export
from launcher.export.targets import target
from launcher.layout import Layout
from launcher.layout.legality import problems
from launcher.layout.resolve import plain_layout
from launcher.planner import Plan, write_plan
from launcher.planner.build import limits, make_plan
from launcher.planner.compare import Case, Comparison, compare
from launcher.planner.given import read_checked
from launcher.planner.record import PROGRAM_KEYS
from launcher.planner.result import SearchResult
from launcher.planner.search import search
from launcher.planner.why_not import why_not
from launcher.run.folder import plan_file
from launcher.schema import entries

READ = {"top", "tokens", "output", "config_dir", *PROGRAM_KEYS}  # of the keys without a group


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
        _check_read(overrides)
        return cls(tuple(overrides), load(overrides))

    def with_(self, *overrides: str) -> ConfiguredJob:
        """Return the same job with these overrides, each replacing an earlier one of its key.

        Raises InputError with everything that is wrong.
        """
        keys = {_key(word) for word in overrides}
        kept = [word for word in self.overrides if _key(word) not in keys]
        return ConfiguredJob.from_overrides([*kept, *overrides])

    def estimate(self, layout: Layout | None = None) -> Estimate:
        """Estimate a layout: seconds a step, bytes a GPU, tokens/s a GPU (`launcher.cost.Estimate` names the units).

        Without a layout every key that is not pinned takes its default, and dp fills the cluster. A layout that does
        not fit is estimated with `fits=False`. Raises InputError if the layout is illegal.
        """
        job = self.settings.job
        layout = layout or plain_layout(job, self.settings.request)
        if found := problems(job, layout):
            raise InputError(found)
        return CostModel(job).estimate(layout)

    def search(self, *, top: int | None = None) -> SearchResult:
        """Search the best `top` layouts (default: the key top), and count why others were rejected.

        Raises InputError if no layout is legal, and NoLayoutFits if none fits.
        """
        settings = self.settings
        refuse = limits(settings.job, settings.run_options)
        return search(settings.job, settings.request, top=top or settings.options.top, refuse=refuse)

    def why_not(self, question: str) -> str:
        """Say why a layout, as `tp=4,pp=16`, is not the first choice.

        Raises InputError if the layout is not understood, and NoLayoutFits if no layout fits.
        """
        refuse = limits(self.settings.job, self.settings.run_options)
        return why_not(self.search(), question, CostModel(self.settings.job), refuse=refuse)

    def compare(self, *others: ConfiguredJob, tokens: float | None = None) -> Comparison:
        """Compare the best plans of this job and others by tokens/s.

        For `tokens` training tokens also by days, GPU-hours and USD. A job that no layout is legal for, or fits, is a
        row without a plan, and its note says why.
        """
        jobs = [(" ".join(job.overrides), job.settings) for job in (self, *others)]
        cases = [Case(name, s.job, s.request, limits(s.job, s.run_options)) for name, s in jobs]
        return compare(cases, tokens=tokens)

    def plan(self) -> JobPlan:
        """Return the best plan of a search over all keys that are not pinned.

        Raises InputError if no layout is legal, and NoLayoutFits if none fits.
        """
        return JobPlan.of(make_plan(self.settings.job, self.settings.request, self.settings.run_options))


def _key(word: str) -> str:
    """The key of an override, by the name of its owner."""
    key = word.partition("=")[0]
    return OTHER_NAMES.get(key, key)


def _check_read(overrides: Sequence[str]) -> None:
    """Raise InputError for keys of the commands, which no job reads."""
    keys = {entry.name for entry in entries(Configuration) if not entry.is_group} - READ
    unread = [word for word in overrides if word.lstrip("+~").partition("=")[0] in keys]
    if unread:
        raise InputError(
            f"{', '.join(unread)}: a job has no such key, the commands read it: leave it out (Job.why_not, Job.compare "
            "and Plan.load are methods)"
        )


class JobPlan(Plan):
    """A plan, with what the commands do with one. `launcher.Plan` is this class.

    plan = Job.from_overrides(["cluster=dgx_a100_80g", "model=gpt3_1b3"]).plan()
    plan.save("best.json")
    """

    @classmethod
    def of(cls, plan: Plan) -> JobPlan:
        """Return the same plan with these methods."""
        return cls(**{field.name: getattr(plan, field.name) for field in fields(plan)})

    @classmethod
    def load(cls, file: str | Path) -> JobPlan:
        """Read a plan from its file or its run folder; raises InputError if there is none, or none of this version."""
        return cls.of(read_checked(plan_file(Path(file))))

    def save(self, file: str | Path) -> None:
        """Write the plan for `plan=FILE` of the commands; raises OSError if that is not possible."""
        write_plan(self, Path(file))

    def export(self, *, to: str, out: str | Path | None = None) -> Export:
        """Return the plan in another tool's terms: its files by name, and what the tool has no words for.

        With `out` also write the files there, with plan.json and a README: a new or empty folder. Raises InputError if
        there is no such tool, if it cannot express the plan, or if the folder cannot be written.
        """
        tool = target(to)
        found = express(self, tool)
        if out is not None:
            write_folder(self, tool, found, Path(out))
        return found

    def report(self) -> str:
        """Return one self-contained HTML page about the plan, as text; without a model it shows where the ranks are."""
        from launcher.report.html import page  # which an estimate need not import

        return page(self)


def estimate(overrides: Sequence[str]) -> Estimate:
    """Estimate one layout, as `Job.estimate`; raises InputError for wrong input or an illegal layout."""
    return ConfiguredJob.from_overrides(overrides).estimate()


def plan(overrides: Sequence[str]) -> JobPlan:
    """Return the best plan of a search over every layout key that is not pinned.

    Raises InputError for wrong input and NoLayoutFits if nothing fits.
    """
    return ConfiguredJob.from_overrides(overrides).plan()
