"""`launcher check`: is this node what the cluster file says, and can a job live on it? 1 where it cannot."""

from __future__ import annotations

import json
from pathlib import Path

from launcher.cli import Invocation
from launcher.launch.findings import Level, hosts_to_exclude, worst
from launcher.launch.preflight import preflight
from launcher.settings import load


def run(invocation: Invocation) -> int:
    settings = load(invocation.overrides)
    folder = Path(settings.config["run_dir"] or "runs")
    findings = preflight(settings.job.cluster, run_folder=folder)
    if settings.config["output"] == "json":
        print(
            json.dumps({"findings": [finding.to_dict() for finding in findings], "worst": worst(findings).name.lower()})
        )
    else:
        for finding in findings:
            print(f"{finding.level.name.lower():8} {finding.check}: {finding.message}")
        if bad := hosts_to_exclude(findings):
            print(f"leave out: sbatch --exclude={','.join(bad)}")
    return int(worst(findings) is Level.PROBLEM)
