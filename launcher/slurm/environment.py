"""Selects the variables for sbatch and srun: variables of another job must not change this one. Pure.

Slurm's commands read options from variables. A shell inside `salloc` or a step has about fifty of them, and users leave
others in profiles: SLURM_HINT, SBATCH_ARRAY_INX, SRUN_CPUS_PER_TASK.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

# Location of Slurm, authentication, file creation: https://slurm.schedmd.com/sbatch.html (INPUT ENVIRONMENT VARIABLES)
CLIENT = frozenset({
    "SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_CLUSTERS", "SLURM_UMASK", "SLURM_DEBUG_FLAGS",
})  # fmt: skip
# Defaults of a site or user for what the launcher does not set: account, partition, time.
SBATCH_DEFAULTS = frozenset(
    f"SBATCH_{name}"
    for name in (
        *("ACCOUNT", "PARTITION", "QOS", "RESERVATION", "TIMELIMIT", "CONSTRAINT", "CLUSTERS", "WCKEY", "EXCLUSIVE"),
        *("MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU", "REQ_SWITCH", "WAIT4SWITCH", "ACCTG_FREQ", "PROFILE"),
        *("NETWORK", "DELAY_BOOT", "WAIT_ALL_NODES", "DEBUG", "POWER"),
    )
)
# Slurm decides which GPUs a job has.
DEVICES = frozenset({"CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK"})
# What a job's tasks may know about their job, and what srun needs.
OF_THE_JOB = re.compile(
    r"SLURMD_\w+|SLURM_(JOB_\w+|JOBID|NNODES|NODELIST|ARRAY_\w+|HET_\w+|RESTART_COUNT|SUBMIT_\w+|CLUSTER_NAME"
    r"|WORKING_CLUSTER|TOPOLOGY_\w+|NODE_ALIASES|MPI_TYPE|NETWORK|GPUS_ON_NODE|CPUS_ON_NODE|TASK_PID|PRIO_PROCESS"
    r"|RLIMIT_\w+|PROPAGATE_RESOURCE_LIMITS\w*|GET_USER_ENV|SPANK_\w+|PMIX\w*)"
)
SLURMS = re.compile(r"(SLURMD?|SBATCH|SALLOC|SRUN)_\w+")
NAMED = 6  # variables listed in a message


def kept_from_sbatch(names: Iterable[str]) -> tuple[str, ...]:
    """Return the variables of a shell that would change a job submitted from it."""
    passed = CLIENT | SBATCH_DEFAULTS
    return tuple(sorted(n for n in names if n in DEVICES or (SLURMS.fullmatch(n) and n not in passed)))


def of_step(environment: Mapping[str, str], *, extra: Sequence[str] = ()) -> dict[str, str]:
    """Return srun's environment in a job: without what would change the step, except what launch.extra requests."""
    asked = {f"SLURM_{word[2:].partition('=')[0].upper().replace('-', '_')}" for word in extra if word[:2] == "--"}
    passed = CLIENT | asked
    return {
        name: value
        for name, value in environment.items()
        if not SLURMS.fullmatch(name) or name in passed or OF_THE_JOB.fullmatch(name)
    }


def secrets_text(names: Sequence[str]) -> str:
    """Return one line about secrets that are not passed on."""
    return (
        f"{', '.join(names)} stay behind, since they look like secrets: to pass one on, set launch.secrets=[{names[0]}]"
    )


def left_behind_text(names: Sequence[str], *, in_job: str | None) -> str:
    """Return one line about variables that are not passed on."""
    others = [name for name in names if not (in_job and name.startswith(("SLURM_", "SLURMD_")))]
    shown = ", ".join(others[:NAMED]) + (f" and {len(others) - NAMED} more" if len(others) > NAMED else "")
    own = f"the SLURM_* variables of job {in_job}, which this shell is in" if in_job else ""
    what = " and ".join(filter(None, [own, shown]))
    return f"{what} stay behind, since they would change the job: set what you need under launch.* (launch.extra)"
