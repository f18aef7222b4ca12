"""Plan, place and run distributed training on NVLink clusters.

`estimate` and `plan` take lists of Hydra overrides and return frozen values; `Job` keeps its configuration:

    from launcher import Job, estimate
    estimate(["cluster=dgx_a100_80g", "model=gpt3_1b3", "layout.tp=1"]).step_time_s
    job = Job.from_overrides(["cluster=dgx_a100_80g", "model=gpt3_1b3"])
    job.with_("layout.tp=4", "layout.micro_batch=8").estimate().step_time_s
"""

from launcher.api import ConfiguredJob as Job
from launcher.api import estimate, plan

__all__ = ["Job", "estimate", "plan"]
__version__ = "0.1.0"
