"""Keys of `launch.*` on a command line that nothing would read: refused, or only said where another place reads them.

Only what was typed counts: a configuration file may be for several places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from launcher.agent.settings import LaunchSettings
from launcher.commands.given_plan import given_keys
from launcher.console import notify
from launcher.errors import InputError
from launcher.planner import Plan
from launcher.slurm.settings import NEVER, SlurmSettings

TORCHRUN_TAKES = {
    "place", "hosts", "hostfile", "nproc_per_node", "nnodes", "max_restarts", "coordinator",
}  # fmt: skip
OF_SBATCH = (
    "job_name", "account", "partition", "qos", "time", "constraint", "reservation", "exclude", "nodelist", "comment",
    "mail_user", "mail_type", "switches", "dependency", "mem", "exclusive", "extra", "signal", "signal_lead_s",
    "requeue", "progress", "max_requeues", "spares", "array_limit", "login", "login_folder", "login_python",
    "login_ssh", "export", "secrets",
)  # fmt: skip
BETWEEN_NODES = ("coordinator", "join_timeout_s", "rejoin_timeout_s", "spare_wait_s", "shrink_to", "last_call_s")


@dataclass(frozen=True, kw_only=True)
class PlannedStart:
    """How a plan is to be started. `in_allocation`: with Slurm's keys, and without sbatch; `num_gpus`: that a job asks
    Slurm for on each node.
    """

    plan: Plan
    launch: LaunchSettings
    slurm: SlurmSettings | None = None
    num_gpus: int = 0
    in_allocation: bool = False
    sweep: bool = False

    @property
    def forks(self) -> bool:
        """Whether ranks are forked, as far as the settings say."""
        program = self.plan.options.program
        own = self.launch.python or self.launch.wrapper or (program is not None and program.kind == "program")
        return self.launch.start == "fork" and not own

    @property
    def has_login(self) -> bool:
        return self.slurm is not None and self.slurm.login is not None


@dataclass(frozen=True)
class UnusedRule:
    """Keys that nothing reads if `unused` holds. `why`: what they would need."""

    keys: tuple[str, ...]
    unused: Callable[[PlannedStart], bool]
    why: str
    refused: bool = True


def _slurm(test: Callable[[SlurmSettings], bool]) -> Callable[[PlannedStart], bool]:
    return lambda start: start.slurm is not None and test(start.slurm)


RULES = (
    UnusedRule(("code",), lambda s: not (s.launch.snapshot or s.has_login),
         "nothing is copied without launch.snapshot=true or launch.login=HOST"),
    UnusedRule(("preload",), lambda s: not s.forks, "it is imported before ranks are forked, and these are not"),
    UnusedRule(("start",), lambda s: s.launch.start == "fork" and not s.forks,
         "a program, launch.python and launch.wrapper need new processes (launch.start=spawn)"),
    UnusedRule(("stdin_rank",), lambda s: s.launch.stdin_rank is not None and s.launch.place in ("ssh", "slurm"),
         "only ranks on this machine can read its standard input"),
    UnusedRule(("warm_idle_s",), lambda s: True, "`launcher warm` reads it, when the server starts"),
    UnusedRule(("login_folder", "login_python", "login_ssh"), _slurm(lambda slurm: slurm.login is None),
         "nothing is sent anywhere without launch.login=HOST"),
    UnusedRule(("progress", "max_requeues"), _slurm(lambda slurm: slurm.requeue == NEVER),
         "the job does not come back with launch.requeue=false"),
    UnusedRule(("check_bandwidth", "bandwidth_threshold"), _slurm(lambda slurm: not slurm.preflight),
         "nothing is measured with launch.preflight=false"),
    UnusedRule(("bandwidth_threshold",), _slurm(lambda slurm: slurm.preflight and slurm.check_bandwidth is False),
         "nothing is measured with launch.check_bandwidth=false"),
    UnusedRule(("array_limit",), lambda s: s.slurm is not None and not s.sweep, "only a sweep (-m) is a job array"),
    UnusedRule(("container.mounts", "container.python", "container.options"),
         _slurm(lambda slurm: slurm.container.runtime == "bare"),
         "there is no container without launch.container.runtime and launch.container.image"),
    UnusedRule(("gpu_type",), lambda s: s.slurm is not None and not s.num_gpus, "the job asks Slurm for no GPU"),
    UnusedRule(OF_SBATCH, lambda s: s.in_allocation, "sbatch alone reads it, and this allocation is there already",
         refused=False),
    UnusedRule(BETWEEN_NODES, lambda s: s.plan.placement.num_nodes == 1, "this run has one node",
         refused=False),
)  # fmt: skip


def check_used(start: PlannedStart, overrides: Sequence[str]) -> None:
    """Say which of the typed keys have no effect; raises InputError for those that ask for what will not be."""
    typed = {name.removeprefix("launch.") for name in given_keys(overrides) if name.startswith("launch.")}
    problems = []
    for keys, rule in _found(start, typed):
        names = ", ".join(f"launch.{key}" for key in keys)
        if rule.refused:
            problems.append(f"{names} would have no effect, for {rule.why}: leave it out")
        else:
            notify(f"{names} has no effect, for {rule.why}")
    if problems:
        raise InputError(problems)


def _found(start: PlannedStart, typed: set[str]) -> Iterator[tuple[Sequence[str], UnusedRule]]:
    """The typed keys that each rule finds."""
    if start.launch.place == "torchrun":
        if others := sorted(typed - TORCHRUN_TAKES):
            yield (
                others,
                UnusedRule(tuple(others), lambda _: True, "the torchrun commands that are printed cannot carry it"),
            )
        return
    for rule in RULES:
        if (keys := [key for key in rule.keys if key in typed]) and rule.unused(start):
            yield keys, rule
