"""`launcher check`: is this node what the cluster file says, and can a job live on it?"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from launcher.cli import Invocation
from launcher.launch.findings import Finding, Level, hosts_to_exclude, worst
from launcher.launch.preflight import preflight
from launcher.settings import load


def run(invocation: Invocation) -> int:
    """Print every finding about this node; 0 where no job would suffer from it, 1 with a problem."""
    settings = load(invocation.overrides)
    config = settings.config
    findings = preflight(settings.job.cluster, run_folder=Path(config["run_dir"] or "runs"))
    as_json = config["output"] == "json"
    for finding in findings:
        print(_line(finding), file=sys.stderr if as_json else sys.stdout)
    excluded = hosts_to_exclude(findings)
    if excluded:
        print(f"leave it out with: sbatch --exclude={','.join(excluded)}", file=sys.stderr)
    if as_json:
        told = [finding.to_dict() for finding in findings]
        print(json.dumps({"findings": told, "worst": worst(findings).name.lower(), "exclude": list(excluded)}))
    return 1 if worst(findings) is Level.PROBLEM else 0


def _line(finding: Finding) -> str:
    return f"{finding.host}  {finding.level.name.lower():<8} {finding.check}: {finding.message}"
