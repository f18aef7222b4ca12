"""Which variables go on to sbatch and to srun: what the shell has from another job must not change this one. Pure.

Slurm's commands take options from variables. A shell inside `salloc` or a step has some fifty of them, and others are
left in profiles by hand: SLURM_HINT, SBATCH_ARRAY_INX, SRUN_CPUS_PER_TASK.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

# Where Slurm is, who asks, how files are made: https://slurm.schedmd.com/sbatch.html (INPUT ENVIRONMENT VARIABLES)
CLIENT = frozenset({
    "SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_CLUSTERS", "SLURM_UMASK", "SLURM_DEBUG_FLAGS",
})  # fmt: skip
# A site's or user's own defaults for what the launcher leaves open: who pays, where, for how long.
SBATCH_DEFAULTS = frozenset(
    f"SBATCH_{name}"
    for name in (
        *("ACCOUNT", "PARTITION", "QOS", "RESERVATION", "TIMELIMIT", "CONSTRAINT", "CLUSTERS", "WCKEY", "EXCLUSIVE"),
        *("MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU", "REQ_SWITCH", "WAIT4SWITCH", "ACCTG_FREQ", "PROFILE"),
        *("NETWORK", "DELAY_BOOT", "WAIT_ALL_NODES", "DEBUG", "POWER"),
    )
)
# Which GPUs a job has is Slurm's to say.
DEVICES = frozenset({"CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK"})
# What a job's tasks may know of their job, and what srun needs of it.
OF_THE_JOB = re.compile(
    r"SLURMD_\w+|SLURM_(JOB_\w+|JOBID|NNODES|NODELIST|ARRAY_\w+|HET_\w+|RESTART_COUNT|SUBMIT_\w+|CLUSTER_NAME"
    r"|WORKING_CLUSTER|TOPOLOGY_\w+|NODE_ALIASES|MPI_TYPE|NETWORK|GPUS_ON_NODE|CPUS_ON_NODE|TASK_PID|PRIO_PROCESS"
    r"|RLIMIT_\w+|PROPAGATE_RESOURCE_LIMITS\w*|GET_USER_ENV|SPANK_\w+|PMIX\w*)"
)
SLURMS = re.compile(r"(SLURMD?|SBATCH|SALLOC|SRUN)_\w+")
NAMED = 6  # so many variables are named in a message


def kept_from_sbatch(names: Iterable[str]) -> tuple[str, ...]:
    """The variables of a shell that would change a job submitted from it."""
    passed = CLIENT | SBATCH_DEFAULTS
    return tuple(sorted(n for n in names if n in DEVICES or (SLURMS.fullmatch(n) and n not in passed)))


def of_step(environment: Mapping[str, str], *, extra: Sequence[str] = ()) -> dict[str, str]:
    """The environment of srun in a job: without what would change the step, but for what launch.extra asked for."""
    asked = {f"SLURM_{word[2:].partition('=')[0].upper().replace('-', '_')}" for word in extra if word[:2] == "--"}
    passed = CLIENT | asked
    return {
        name: value
        for name, value in environment.items()
        if not SLURMS.fullmatch(name) or name in passed or OF_THE_JOB.fullmatch(name)
    }


def secrets_text(names: Sequence[str]) -> str:
    """One line on secrets that stay behind."""
    return f"{', '.join(names)} stay behind, for they look like secrets: to carry one, launch.secrets=[{names[0]}]"


def left_behind_text(names: Sequence[str], *, in_job: str | None) -> str:
    """One line on variables that stay behind."""
    others = [name for name in names if not (in_job and name.startswith(("SLURM_", "SLURMD_")))]
    shown = ", ".join(others[:NAMED]) + (f" and {len(others) - NAMED} more" if len(others) > NAMED else "")
    own = f"the SLURM_* variables of job {in_job}, which this shell is in" if in_job else ""
    what = " and ".join(filter(None, [own, shown]))
    return f"{what} stay behind, for they would change the job: say what you need under launch.* (launch.extra)"
