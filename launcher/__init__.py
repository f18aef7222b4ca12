"""Plan, place and run distributed training on NVLink clusters.

`estimate` and `plan` take lists of Hydra overrides and return frozen values:

    from launcher import estimate
    estimate(["cluster=dgx_a100_80g", "model=gpt3_1b3", "layout.tp=1"]).step_time_s
"""

from launcher.api import estimate, plan

__all__ = ["estimate", "plan"]
