"""The keys of `launch.*` for starting and supervising ranks."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher.errors import InputError
from launcher.schema import AUTO, key, read
from launcher.secret import is_secret_name

VARIABLE_NAME = re.compile(r"[A-Za-z_]\w*")
_UNCATCHABLE = {signal.SIGKILL, signal.SIGSTOP}


def checked_signals(value: Any) -> tuple[signal.Signals, ...]:
    """Parse names of signals, with or without SIG; raises ValueError if one cannot be caught."""
    known = {s.name.removeprefix("SIG"): s for s in signal.Signals if s not in _UNCATCHABLE}
    names = [str(word).upper().removeprefix("SIG") for word in (value if isinstance(value, list | tuple) else [value])]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"has {unknown[0]}, which is not a signal that can be caught: INT, TERM, USR1, USR2, HUP …")
    return tuple(known[name] for name in names)


def variable_names(value: Any) -> tuple[str, ...]:
    """Names of variables; no message repeats what may be a secret's value."""
    words = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(word, str) and VARIABLE_NAME.fullmatch(word) for word in words):
        raise InputError("launch.secrets has an entry that is no variable name: give names only, never values")
    return tuple(words)


def checked_environment(value: Any) -> dict[str, str]:
    """Variables with their values; raises InputError with all that are none, or look like secrets."""
    if not isinstance(value, Mapping):
        raise ValueError("must be a group of variables")
    problems = []
    for name, text in value.items():
        if not VARIABLE_NAME.fullmatch(str(name)) or isinstance(text, dict | list) or text is None:
            problems.append(f"launch.environment.{name} must be a variable name with one value")
        elif is_secret_name(str(name)):
            problems.append(
                f"launch.environment.{name} would be written to a file: export it in your shell and name it in "
                f"launch.secrets=[{name}]"
            )
    if problems:
        raise InputError(problems)
    return {str(name): str(text) for name, text in value.items()}


def _endpoint(value: Any) -> str:
    from launcher.rendezvous.config import split_endpoint  # imports socket, only needed with this key

    try:
        split_endpoint(str(value))
    except InputError as error:
        raise InputError(f"launch.coordinator = {error}") from error
    return str(value)


def environment_key() -> Any:
    """Declare launch.environment, which an agent and what starts it both read."""
    return key(
        {},
        convert=checked_environment,
        example="{NCCL_DEBUG: INFO}",
        meaning="variables for the ranks, which win over those of your shell and the launcher's own choices; they are "
        "kept in the run folder, so no secrets",
    )


def export_key() -> Any:
    """Declare launch.export of places on other machines."""
    return key(
        "all", choices=("all", "none"), meaning="all: the job gets the environment of your shell, without secrets"
    )


def secrets_key() -> Any:
    """Declare launch.secrets of places on other machines."""
    return key(
        (),
        convert=variable_names,
        example="[WANDB_API_KEY]",
        meaning="names of secret variables of your shell that the job may have; all others stay behind",
    )


@dataclass(frozen=True)
class LaunchSettings:
    """How ranks are started and supervised."""

    place: str = key(
        "local",
        choices=("local", "slurm", "ssh", "torchrun"),
        meaning="where ranks start; some places have keys of their own",
    )
    start: str = key(
        "fork", choices=("fork", "spawn"),
        meaning="fork: import torch once and fork every rank from it; spawn: a new interpreter for each rank",
    )  # fmt: skip
    preload: tuple[str, ...] = key(
        (), unit="modules", example="[torch.distributed.tensor]",
        meaning="imported before the fork, in addition to torch and the recipe's modules",
    )  # fmt: skip
    console: str = key(
        "rank0", choices=("rank0", "all"),
        meaning="terminal output: rank0 (its output, unchanged) or all (every rank, with a prefix)",
    )  # fmt: skip
    omp_num_threads: int | None = key(
        AUTO, auto=True, unit="threads", minimum=1,
        meaning="threads of each rank; auto: cores per rank of the node; a set OMP_NUM_THREADS wins",
    )  # fmt: skip
    max_restarts: int = key(0, unit="restarts", minimum=0, meaning="how often the ranks are restarted after a failure")
    refill_steps: int = key(
        100, unit="steps", minimum=1, meaning="progress after a restart that restores the full budget of restarts"
    )
    stop_signals: tuple[signal.Signals, ...] = key(
        ("INT", "TERM", "HUP"), convert=checked_signals, example="[INT, TERM, USR1]",
        meaning="signals that ask the job to stop at the end of a step; the same again, or two of "
        "INT, TERM and HUP, stop it at once; an ignored HUP (nohup) stays ignored",
    )  # fmt: skip
    grace_s: float = key(
        30.0,
        unit="s",
        minimum=0,
        meaning="time for ranks to stop when asked: recipes, and scripts that handle the signal",
    )
    kill_after_s: float = key(5.0, unit="s", minimum=0, meaning="time from TERM to KILL when ranks are ended")
    hang_timeout_s: float | None = key(
        600.0, unit="s", above=0, meaning="a rank hangs if its heartbeats stop for this long; null: never"
    )
    start_timeout_s: float | None = key(
        1800.0, unit="s", above=0,
        meaning="a rank hangs if it should send heartbeats and sends none for this long after its start; null: never",
    )  # fmt: skip
    silence_timeout_s: float | None = key(
        1800.0, unit="s", above=0,
        meaning="the job hangs if no rank prints, uses a core or finishes a step for this long; null: never",
    )  # fmt: skip
    straggler_factor: float = key(
        1.5, unit="1", minimum=1, meaning="report a rank with steps longer than the median by this factor"
    )
    straggler_steps: int = key(20, unit="steps", minimum=1, meaning="slow steps in a row before a rank is reported")
    cold_start_budget_s: float | None = key(
        None, unit="s", above=0,
        meaning="the recipe coldstart fails where the time to the first all-reduce is longer; null: it only reports it",
    )  # fmt: skip
    join_timeout_s: float = key(600.0, unit="s", minimum=0.1, meaning="how long nodes wait for each other at the start")
    rejoin_timeout_s: float = key(
        120.0, unit="s", minimum=0.1, meaning="how long to wait for a lost node, or the coordinator, to come back"
    )
    spare_wait_s: float = key(10.0, unit="s", minimum=0, meaning="time after which a spare node replaces a missing one")
    shrink_to: int | None = key(
        None, unit="nodes", minimum=1,
        meaning="continue without lost nodes, on at least this many, with less data parallelism; null: wait",
    )  # fmt: skip
    last_call_s: float = key(30.0, unit="s", minimum=0, meaning="how long to wait for a lost node before that")
    coordinator: str | None = key(
        None, convert=_endpoint, example="node1:29500",
        meaning="host:port where the plan's first node listens; null: loopback for one node, its host and a port by "
        "run id for several",
    )  # fmt: skip
    warm: str = key(
        AUTO, choices=(AUTO, "never"),
        meaning="auto: use this user's warm fork server (launcher warm) if one runs and matches",
    )  # fmt: skip
    warm_idle_s: float = key(3600.0, unit="s", minimum=1, meaning="the warm server stops after this long without a run")
    nproc_per_node: int | None = key(
        AUTO, auto=True, unit="ranks", minimum=1, meaning="ranks of a node; auto: cluster.node.num_gpus"
    )
    nnodes: int | None = key(AUTO, auto=True, unit="nodes", minimum=1, meaning="nodes; auto: cluster.num_nodes")
    python: str | None = key(
        None, verbatim=True, example="/venv/bin/python",
        meaning="another interpreter for your script or module; it need not have the launcher",
    )  # fmt: skip
    wrapper: str | None = key(
        None, verbatim=True, example="nsys profile -o {run_dir}/rank{rank}",
        meaning="prefix of each rank's command; {rank}, {local_rank}, {node}, {run_dir} are replaced",
    )  # fmt: skip
    stdin_rank: int | None = key(
        0, unit="rank", minimum=0, meaning="the rank that reads the standard input of the command; null: none"
    )
    forward_signal: str = key(
        AUTO, choices=(AUTO, "none", "INT", "TERM", "USR1", "USR2", "HUP"),
        meaning="stop signal for ranks with their own handler, with grace_s: auto: the received one if they handle it, "
        "else TERM (TERM for INT, which Python itself handles); none: ranks are ended",
    )  # fmt: skip
    bind: str = key(
        AUTO, choices=(AUTO, "none", "numa", "cores"),
        meaning="cores of each rank: numa: those of its GPU's NUMA node; cores: an exclusive share of these or of "
        "all; auto: numa if known",
    )  # fmt: skip
    exit_code: str = key(
        "job", choices=("job", "first"),
        meaning="exit code of the command if the job failed: job: 1; first: that of the rank that failed first, or "
        "128 + signal number",
    )  # fmt: skip

    snapshot: bool = key(
        False,
        meaning="copy the code into the run folder and run from there: edits made while the job waits change nothing; "
        "what is no code is linked",
    )
    code: tuple[str, ...] = key(
        (), example="['*.py','configs/**']",
        meaning="patterns of the files that are copied, from the working folder; none: what git has or would add",
    )  # fmt: skip
    environment: Mapping[str, str] = environment_key()

    def handled_signals(self) -> tuple[signal.Signals, ...]:
        """The stop signals to handle, without HUP if this process was started to ignore it."""
        ignores_hup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        return tuple(number for number in self.stop_signals if not (number is signal.SIGHUP and ignores_hup))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LaunchSettings:
        """Read the group `launch` without Slurm's keys; raises InputError with every problem in it."""
        return read(cls, config, "launch")
