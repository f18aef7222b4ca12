"""Plan, place and run distributed training on NVLink clusters.

`estimate` and `plan` take lists of Hydra overrides and return frozen values; `Job` keeps its configuration:

    from launcher import Job, estimate
    estimate(["cluster=dgx_a100_80g", "model=gpt3_1b3", "layout.tp=1"]).step_time_s
    job = Job.from_overrides(["cluster=dgx_a100_80g", "model=gpt3_1b3"])
    job.with_("layout.tp=4", "layout.micro_batch=8").estimate().step_time_s
    job.why_not("tp=8,pp=1")
    save_plan(job.plan(), "best.json")

What goes wrong is an InputError, a NoLayoutFits or a JobFailed; all are LauncherErrors.
"""

from launcher.api import ConfiguredJob as Job
from launcher.api import estimate, export_plan, load_plan, plan, report_plan, save_plan
from launcher.errors import InputError, JobFailed, LauncherError, NoLayoutFits

__all__ = [
    "InputError",
    "Job",
    "JobFailed",
    "LauncherError",
    "NoLayoutFits",
    "estimate",
    "export_plan",
    "load_plan",
    "plan",
    "report_plan",
    "save_plan",
]
__version__ = "0.1.0"
