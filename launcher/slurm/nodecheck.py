"""Checks and measures the nodes of an allocation before any rank starts."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Thread
from typing import IO

from launcher import env
from launcher.agent.launch import Launch, write_launch
from launcher.layout import Layout
from launcher.planner import Plan, write_plan
from launcher.planner.options import BandwidthOptions
from launcher.planner.record import RunOptions
from launcher.preflight.bandwidth import LIMIT_S, RECIPE, bandwidth_findings
from launcher.preflight.findings import Finding
from launcher.rendezvous.authentication import SECRET, new_secret
from launcher.run.folder import RunFolder, create_run_folder
from launcher.slurm.allocation import given_cpus, node_address
from launcher.slurm.environment import of_step
from launcher.slurm.heard import Heard, HeardLine, judge
from launcher.slurm.settings import SlurmSettings
from launcher.slurm.step import AGENT, CHECK, Step, rank_variables, step_argv
from launcher.slurm.watching import wait

PREFLIGHT_LIMIT_S = 60.0
READ_ON_S = 5.0  # do not wait longer for a grandchild of srun that keeps its output open
MOST_LINES, LONGEST_LINE = 200_000, 65_536


@dataclass(frozen=True)
class Steps:
    """How this job starts tasks on its nodes.

    `given`: all hosts of the allocation. `attempt`: how often spares have replaced lost nodes in this start; an old
    step that cannot end because of a lost node may still hold cores and GPUs that the next one needs. `ended`: whether
    Slurm ends this job, so that a check goes on for nothing.
    """

    folder: Path
    settings: SlurmSettings
    launch: Launch
    given: tuple[str, ...]
    run_id: str
    attempt: int = 0
    ended: Callable[[], bool] = field(default=lambda: False, repr=False)
    secret: str = field(default_factory=new_secret, repr=False)  # of the agents of this start

    def argv(self, plan: Plan, module: str, hosts: Sequence[str]) -> tuple[str, ...]:
        """Return the srun command with `module` on these hosts of the allocation."""
        work_dir, own = str(self.launch.work_dir), plan.options.program
        script = own.target if own else ""
        some = tuple(hosts) if set(hosts) != set(self.given) else ()
        shares = self.attempt > 0
        step = Step(self.folder, work_dir, script, sys.executable, len(hosts), given_cpus(), module, some, shares)
        return step_argv(plan, self.settings, step)

    def variables(self, plan: Plan) -> dict[str, str]:
        """Return the environment of a step."""
        run_id = f"{self.run_id}-{self.attempt}"
        ours = {env.COORDINATOR: node_address(plan.hosts[0]), env.RUN_ID: run_id, SECRET: self.secret}
        inherited = of_step(env.environment(), extra=self.settings.extra)
        return {**inherited, **rank_variables(self.settings), **ours}


def look_at(steps: Steps, plan: Plan, hosts: Sequence[str]) -> list[Finding]:
    """Return the findings of launcher/preflight/checks.py on every host; no answer is a problem too."""
    return judge(_hear(steps.argv(plan, CHECK, hosts), steps.variables(plan), ended=steps.ended), hosts)


def wants_bandwidth(plan: Plan, settings: SlurmSettings) -> bool:
    """Return launch.check_bandwidth; `auto`: if there are GPUs on at least two nodes."""
    if settings.check_bandwidth is None:
        return plan.placement.num_nodes > 1 and plan.job.cluster.node.gpu.kind == "cuda"
    return settings.check_bandwidth


def measure(steps: Steps, plan: Plan, hosts: Sequence[str]) -> list[Finding]:
    """Run the recipe `bandwidth` on every host and spare, for at most a minute; report slow nodes as problems."""
    folder = create_run_folder(RunFolder(steps.folder).inner(RECIPE).path)
    folder.result.unlink(missing_ok=True)
    settings = replace(steps.launch.settings, max_restarts=0, console="rank0")
    write_launch(replace(steps.launch, settings=settings), folder.launch)
    plan = measuring_plan(plan, hosts, steps.settings)
    write_plan(plan, folder.plan)
    inner = replace(steps, folder=folder.path, run_id=f"{steps.run_id}-{RECIPE}")
    log = folder.step_log
    with log.open("wb") as file:
        argv, variables = inner.argv(plan, AGENT, hosts), inner.variables(plan)
        process = subprocess.Popen(argv, env=variables, stdout=file, stderr=subprocess.STDOUT)
    code = wait(process, LIMIT_S, ended=steps.ended)
    return bandwidth_findings(folder.result, code=code, log=log)


def measuring_plan(plan: Plan, hosts: Sequence[str], settings: SlurmSettings) -> Plan:
    """Return a plan of the bandwidth recipe with the job's ranks per node on every host."""
    cluster = replace(plan.job.cluster, num_nodes=len(hosts))
    layout = Layout(tp=1, pp=1, dp=len(hosts) * plan.placement.ranks_per_node)
    recipe = BandwidthOptions(name=RECIPE, preload=("launcher.worker.session",), threshold=settings.bandwidth_threshold)
    return Plan(replace(plan.job, cluster=cluster), layout, {}, (), RunOptions(recipe=recipe), hosts=tuple(hosts))


def _hear(argv: Sequence[str], variables: Mapping[str, str], *, ended: Callable[[], bool]) -> Heard:
    """Return the output of a step with times, up to a time limit: on a bad node it may never end."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(argv, env=variables, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    out: list[HeardLine] = []
    err: list[HeardLine] = []
    readers = [Thread(target=_read, args=pair) for pair in ((process.stdout, out), (process.stderr, err))]
    for reader in readers:
        reader.start()
    if wait(process, PREFLIGHT_LIMIT_S, ended=ended) is None:
        err.append(HeardLine(f"it did not end within {PREFLIGHT_LIMIT_S:.0f} s", time.time()))
    for reader in readers:
        reader.join(READ_ON_S)
    return Heard(tuple(out), tuple(err), process.returncode)


def _read(stream: IO[bytes], lines: list[HeardLine]) -> None:
    """Keep the lines of a stream with their arrival times, up to a maximum number."""
    for line in stream:
        if len(lines) < MOST_LINES:
            lines.append(HeardLine(line[:LONGEST_LINE].decode(errors="replace").rstrip("\n"), time.time()))
