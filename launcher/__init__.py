"""Plan, place and run distributed training on NVLink clusters.

`estimate` and `plan` take lists of Hydra overrides and return frozen values; `Job` keeps its configuration,
and a `Plan` is saved, loaded, exported and reported:

    from launcher import Job, estimate
    estimate(["cluster=dgx_a100_80g", "model=gpt3_1b3", "layout.tp=1"]).step_time_s
    job = Job.from_overrides(["cluster=dgx_a100_80g", "model=gpt3_1b3"])
    job.with_("layout.tp=4", "layout.micro_batch=8").estimate().step_time_s
    job.why_not("tp=8,pp=1")
    job.plan().save("best.json")

What goes wrong is an InputError, a NoLayoutFits or a JobFailed; all are LauncherErrors.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from launcher.errors import InputError, JobFailed, LauncherError, NoLayoutFits

if TYPE_CHECKING:
    from launcher.api import ConfiguredJob as Job
    from launcher.api import JobPlan as Plan
    from launcher.api import estimate, plan
else:

    def __getattr__(name: str) -> object:
        """Import the API when it is asked for: ranks, and commands that look at a run, need none of it."""
        if name not in _API:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module("launcher.api"), _API[name])

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = ["InputError", "Job", "JobFailed", "LauncherError", "NoLayoutFits", "Plan", "estimate", "plan"]
__version__ = "0.1.0"
_API = {"Job": "ConfiguredJob", "Plan": "JobPlan", "estimate": "estimate", "plan": "plan"}  # names in launcher.api
