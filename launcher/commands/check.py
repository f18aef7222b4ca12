"""`launcher check`: compare this node, or each node of an allocation, with the cluster file; check that jobs can run.

launcher check cluster=NAME                                              this machine
salloc -N4 --gpus-per-node=8 launcher check cluster=NAME                 every node, and bandwidth between them
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launcher.agent.launch import write_launch
from launcher.cluster.hostlist import compress_hostlist
from launcher.commands.common import checked_settings
from launcher.commands.invocation import Invocation
from launcher.commands.submit import slurm_of, with_slurm
from launcher.config.settings import Settings
from launcher.console import show
from launcher.layout import Layout
from launcher.planner import Plan, write_plan
from launcher.preflight.bandwidth import LIMIT_S, RECIPE, bandwidth_findings
from launcher.preflight.checks import preflight
from launcher.preflight.findings import Finding, Level, hosts_to_exclude, worst
from launcher.run.folder import RUNS, RunFolder, create_run_folder, new_run_folder
from launcher.slurm import nodecheck
from launcher.slurm.allocation import owns_allocation, read_allocation
from launcher.slurm.record import SlurmLaunch, slurm_launch
from launcher.slurm.settings import SlurmSettings


def run(invocation: Invocation) -> int:
    """Print every finding. Return 1 if one is a problem, else 0."""
    settings = checked_settings(with_slurm(invocation.overrides))
    slurm = slurm_of(settings)
    as_json = settings.options.output == "json"
    if owns_allocation():
        findings = check_allocation(settings, slurm)
    else:
        findings = check_here(settings, slurm, invocation.overrides)
    for finding in findings:
        show(_line(finding), to=sys.stderr if as_json else sys.stdout)
    excluded = hosts_to_exclude(findings)
    if excluded:
        print(f"exclude them with: sbatch --exclude={compress_hostlist(excluded)}", file=sys.stderr)
    if as_json:
        listed = [finding.to_dict() for finding in findings]
        print(json.dumps({"findings": listed, "worst": worst(findings).name.lower(), "exclude": list(excluded)}))
    return 1 if worst(findings) is Level.PROBLEM else 0


def check_here(settings: Settings, slurm: SlurmSettings, overrides: Sequence[str]) -> list[Finding]:
    """Check this machine; with launch.check_bandwidth=true also measure the bandwidth between its ranks."""
    run_dir = settings.options.run_dir
    findings = preflight(settings.job.cluster, run_folder=Path(run_dir or RUNS))
    if slurm.check_bandwidth:
        folder = _folder(run_dir)
        findings += _measured_here(folder, overrides, threshold=slurm.bandwidth_threshold)
    elif settings.job.cluster.scheduler == "slurm" and settings.job.cluster.num_nodes > 1:
        print("this checks the local machine only; to check nodes: salloc -N… launcher check …", file=sys.stderr)
    return findings


def check_allocation(settings: Settings, slurm: SlurmSettings) -> list[Finding]:
    """Check every node of this process's allocation, and the bandwidth between them."""
    hosts = read_allocation().hosts
    job = replace(settings.job, cluster=replace(settings.job.cluster, num_nodes=len(hosts)))
    plan = Plan(job, Layout(tp=1, pp=1, dp=job.cluster.num_gpus), {}, (), settings.run_options, hosts=hosts)
    folder = RunFolder(_folder(settings.options.run_dir).path.absolute())
    launch = slurm_launch(settings.options.launch, SlurmLaunch(settings=slurm))
    write_plan(plan, folder.plan)
    write_launch(launch, folder.launch)
    steps = nodecheck.Steps(folder.path, slurm, launch, hosts, run_id=f"check-{os.getpid()}")
    findings = nodecheck.look_at(steps, plan, hosts)
    sound = [host for host in hosts if host not in hosts_to_exclude(findings)]
    if sound and nodecheck.wants_bandwidth(plan, slurm):
        findings += nodecheck.measure(steps, plan, sound)
    return findings


def _measured_here(folder: RunFolder, overrides: Sequence[str], *, threshold: float) -> list[Finding]:
    """Run the recipe `bandwidth` on this machine, as `launcher run` does."""
    inner, log = folder.inner(RECIPE), folder.step_log
    ours = re.compile(r"[+~]*(launch|recipe|layout|output|run_dir|dry_run)\b")
    words = [word for word in overrides if not ours.match(word)]
    fixed = [
        f"recipe={RECIPE}",
        f"recipe.threshold={threshold}",
        "cluster.num_nodes=1",
        "layout.tp=1",
        "layout.pp=1",
        f"run_dir={inner.path}",
    ]
    argv = [sys.executable, "-P", "-m", "launcher.cli", "run", *words, *fixed]
    with log.open("wb") as file:
        try:
            code = subprocess.run(argv, stdout=file, stderr=subprocess.STDOUT, timeout=LIMIT_S, check=False).returncode
        except subprocess.TimeoutExpired:
            code = None
    return bandwidth_findings(inner.result, code=code, log=log)


def _folder(run_dir: str | None) -> RunFolder:
    """Return a new folder for the output of a check; inside a run folder it is a subfolder."""
    return create_run_folder(RunFolder(Path(run_dir)).inner("check").path) if run_dir else new_run_folder("check")


def _line(finding: Finding) -> str:
    return f"{finding.host or 'all nodes'}  {finding.level.name.lower():<8} {finding.check}: {finding.message}"
