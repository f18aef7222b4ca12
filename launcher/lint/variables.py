"""Rules on variables: those that Slurm does not set, those that reach no task, and NCCL's."""

from __future__ import annotations

import re
from collections.abc import Iterator

from launcher.lint.finding import Rule, Subject, Trap, nearest
from launcher.lint.shell import ShellCommand, assignments, unquote

# https://slurm.schedmd.com/sbatch.html and srun.html (OUTPUT ENVIRONMENT VARIABLES), Slurm 22.05 to 25.05.
SLURM_VARIABLES: frozenset[str] = frozenset(
    f"SLURM_{name}"
    for name in re.findall(
        r"\w+",
        """
        ARRAY_JOB_ID ARRAY_TASK_COUNT ARRAY_TASK_ID ARRAY_TASK_MAX ARRAY_TASK_MIN ARRAY_TASK_STEP CLUSTER_NAME CLUSTERS
        CONF CONTAINER CPU_BIND CPU_BIND_LIST CPU_BIND_TYPE CPU_BIND_VERBOSE CPU_FREQ_REQ CPUS_ON_NODE CPUS_PER_GPU
        CPUS_PER_TASK DEBUG DIST_PLANESIZE DISTRIBUTION EXPORT_ENV GPU_BIND GPU_FREQ GPUS GPUS_ON_NODE GPUS_PER_NODE
        GPUS_PER_SOCKET GPUS_PER_TASK GTIDS HET_SIZE HINT HOSTFILE JOB_ACCOUNT JOB_CPUS_PER_NODE JOB_DEPENDENCY
        JOB_END_TIME JOB_GID JOB_GPUS JOB_ID JOB_LICENSES JOB_NAME JOB_NODELIST JOB_NUM_NODES JOB_PARTITION JOB_QOS
        JOB_RESERVATION JOB_SEGMENT_SIZE JOB_START_TIME JOB_UID JOB_USER JOBID JWT KILL_BAD_EXIT LABELIO
        LAUNCH_NODE_IPADDR LOCALID MEM_BIND MEM_PER_CPU MEM_PER_GPU MEM_PER_NODE MPI_TYPE NETWORK NNODES NODE_ALIASES
        NODEID NODELIST NPROCS NTASKS NTASKS_PER_CORE NTASKS_PER_GPU NTASKS_PER_NODE NTASKS_PER_SOCKET OOM_KILL_STEP
        OPEN_MODE OVERCOMMIT PRIO_PROCESS PROCID PROFILE RESTART_COUNT SHARDS_ON_NODE SRUN_COMM_HOST SRUN_COMM_PORT
        STEP_GPUS STEP_ID STEP_LAUNCHER_PORT STEP_NODELIST STEP_NUM_NODES STEP_NUM_TASKS STEP_RESV_PORTS
        STEP_TASKS_PER_NODE STEPID SUBMIT_DIR SUBMIT_HOST TASK_PID TASKS_PER_NODE THREADS_PER_CORE TIMELIMIT TMPDIR
        TOPOLOGY_ADDR TOPOLOGY_ADDR_PATTERN TRES_PER_TASK UMASK WAIT WCKEY WORKING_CLUSTER RESV_PORTS SPANK
        """,
    )
)
# Set only where the option was given, whatever else says the same: --gres=gpu:8 sets no SLURM_GPUS_PER_NODE.
ONLY_WITH_OPTION = {
    "SLURM_CPUS_PER_TASK": "cpus-per-task",
    "SLURM_GPUS_PER_NODE": "gpus-per-node",
    "SLURM_GPUS": "gpus",
    "SLURM_GPUS_PER_TASK": "gpus-per-task",
    "SLURM_NTASKS_PER_NODE": "ntasks-per-node",
    "SLURM_CPUS_PER_GPU": "cpus-per-gpu",
    "SLURM_MEM_PER_NODE": "mem",
    "SLURM_MEM_PER_CPU": "mem-per-cpu",
}
# torch 2.2 put TORCH_ before its own NCCL variables: https://pytorch.org/docs/stable/torch_nccl_environment_variables.html
RENAMED = {
    f"NCCL_{name}": f"TORCH_NCCL_{name}"
    for name in ("ASYNC_ERROR_HANDLING", "BLOCKING_WAIT", "DESYNC_DEBUG", "ENABLE_TIMING", "AVOID_RECORD_STREAMS")
}
TUNING = ("NCCL_ALGO", "NCCL_PROTO", "NCCL_MIN_NCHANNELS", "NCCL_MAX_NCHANNELS", "NCCL_BUFFSIZE", "NCCL_NTHREADS")


def _settings(subject: Subject) -> Iterator[tuple[ShellCommand, str, str]]:
    for command in (*subject.script.commands, *subject.script.in_tasks):
        for name, value in assignments(command).items():
            yield command, name, unquote(value)


def _used(subject: Subject) -> Iterator[tuple[int, str]]:
    """Every SLURM_* variable that a line reads without a default of its own, once for each line."""
    for number, text in enumerate(subject.script.lines, 1):
        code = "" if text.lstrip().startswith("#") else text
        for name in dict.fromkeys(re.findall(r"\$(?:\{(?=\w+\}))?(SLURM_\w+)", code)):
            yield number, name


def misspelt_variable(subject: Subject) -> Iterator[Trap]:
    for line, name in _used(subject):
        if name in SLURM_VARIABLES or name in subject.script.variables or "_PACK_GROUP" in name or "_HET_GROUP" in name:
            continue
        near = nearest(name, SLURM_VARIABLES)
        yield Trap(line, f"${name}" + (f", did you mean ${near}?" if near else ""))


def variable_without_its_option(subject: Subject) -> Iterator[Trap]:
    given = {*subject.script.options, *(name for start in subject.script.starts for name in start.options)}
    for line, name in _used(subject):
        option = ONLY_WITH_OPTION.get(name)
        if option and option not in given and name not in subject.script.variables:
            yield Trap(line, f"${name} without --{option}")


def environment_cut_off(subject: Subject) -> Iterator[Trap]:
    places = [(d.line, d.value, "#SBATCH") for d in subject.script.directives if d.name == "export"]
    places += [(s.line, s.options["export"], "srun") for s in subject.script.starts if "export" in s.options]
    for line, value, where in places:
        first = value.strip("\"'").split(",")[0].upper()
        if value and first not in ("ALL", "NONE", "NIL"):
            yield Trap(line, f"{where} --export={value}")


def loopback_let_in(subject: Subject) -> Iterator[Trap]:
    for command, name, value in _settings(subject):
        if name == "NCCL_SOCKET_IFNAME" and value.startswith("^"):
            left_out = [word.strip("= ") for word in value[1:].split(",")]
            if not any(word and "lo".startswith(word) for word in left_out):
                yield Trap(command.line, f"{name}={value}")


def pattern_for_gloo(subject: Subject) -> Iterator[Trap]:
    for command, name, value in _settings(subject):
        if name == "GLOO_SOCKET_IFNAME" and value[:1] in ("^", "="):
            yield Trap(command.line, f"{name}={value}")


def hangs_on_errors(subject: Subject) -> Iterator[Trap]:
    for command, name, value in _settings(subject):
        if name in ("NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_ASYNC_ERROR_HANDLING") and value == "0":
            yield Trap(command.line, f"{name}=0")


def renamed_variable(subject: Subject) -> Iterator[Trap]:
    for command, name, value in _settings(subject):
        if name in RENAMED and RENAMED[name] not in subject.script.variables:
            yield Trap(command.line, f"{name}={value}, now {RENAMED[name]}")


def nccl_tuned_by_hand(subject: Subject) -> Iterator[Trap]:
    for command, name, value in _settings(subject):
        if name in TUNING or (name == "NCCL_NET" and value.lower() == "socket"):
            yield Trap(command.line, f"{name}={value}")


def library_path_replaced(subject: Subject) -> Iterator[Trap]:
    for command, name, value in _settings(subject):
        if name in ("LD_LIBRARY_PATH", "PATH") and value and f"${name}" not in value and f"${{{name}" not in value:
            yield Trap(command.line, f"{name}={value}")


RULES = (
    Rule(
        "unknown-slurm-variable", "error", misspelt_variable,
        "Slurm sets no such variable: it is empty, and results that use it are silently wrong.",
        "set -u finds it at once; the names are in sbatch's manual under OUTPUT ENVIRONMENT VARIABLES",
    ),
    Rule(
        "variable-without-option", "error", variable_without_its_option,
        "Slurm sets this variable only where the job was submitted with the option itself: here it is empty.",
        "give the option, or a default: ${NAME:-8}; SLURM_GPUS_ON_NODE and SLURM_CPUS_ON_NODE are always set",
    ),
    Rule(
        "environment-cut-off", "error", environment_cut_off,
        "a list without ALL replaces the environment: the tasks have these variables and no PATH of yours.",
        "--export=ALL,NAME=value",
    ),
    Rule(
        "loopback-let-in", "error", loopback_let_in,
        "with ^ NCCL takes every interface but these, lo too, which it excludes when nothing is set.",
        "NCCL_SOCKET_IFNAME=^lo,docker, or the name of the fabric's interface",
    ),
    Rule(
        "pattern-for-gloo", "error", pattern_for_gloo,
        "gloo takes names of interfaces only, not NCCL's ^ and =: it fails with \"Unable to find address for\".",
        "GLOO_SOCKET_IFNAME=ib0 (a name, or several with commas)",
    ),
    Rule(
        "hangs-on-errors", "warning", hangs_on_errors,
        "with its error handling off torch waits for a dead peer until the time limit.",
        "remove it: 1 or 3 is the default",
    ),
    Rule(
        "renamed-variable", "warning", renamed_variable,
        "torch renamed it in 2.2: the old name still works with a warning, until it does not.",
        "write TORCH_ before it",
    ),
    Rule(
        "nccl-tuned-by-hand", "warning", nccl_tuned_by_hand,
        "NCCL chooses by message and topology; a value that was right for one test is wrong for other sizes and nodes.",
        "remove it, or keep it with the measurement that it comes from",
    ),
    Rule(
        "path-replaced", "warning", library_path_replaced,
        "what modules and the site have put there is gone: programs and libraries are not found, or others are.",
        "add to it: NAME=/new:$NAME",
    ),
)  # fmt: skip
