"""`launcher run`: plan, write the run folder, start the ranks here, wait for them."""

from __future__ import annotations

import sys
from pathlib import Path

from launcher.cli import Invocation
from launcher.commands.common import checked_settings, work
from launcher.errors import InputError
from launcher.launch.run_folder import RunFolder, create_run_folder, new_run_folder
from launcher.launch.settings import LaunchSettings
from launcher.plan import Plan, write_plan
from launcher.plan.build import make_plan
from launcher.settings import Settings, as_yaml


def run(invocation: Invocation) -> int:
    """Run the job here; 0 done, 1 failed. Standard output carries rank 0's, whose last line is JSON for a recipe."""
    if invocation.multirun:
        raise InputError("`launcher run` runs one job: give one value for each key, or sweep with `launcher submit -m`")
    settings = checked_settings(invocation.overrides)
    job = work(settings, invocation.rest)
    plan = make_plan(settings.job, settings.request, settings.config, to_run=True)
    if plan.placement.num_nodes > 1:
        raise InputError(
            f"this plan needs {plan.placement.num_nodes} nodes, and `launcher run` starts ranks on this machine: "
            "use `launcher submit`, or set cluster.num_nodes=1"
        )
    tell_plan(plan)
    if settings.config["dry_run"]:
        print("dry run: nothing was started", file=sys.stderr)
        return 0
    folder = prepare(plan, settings, name=job.name)
    print(f"run folder: {folder.path}", file=sys.stderr)
    from launcher.launch.local import run_local

    launch = LaunchSettings.from_config(settings.config["launch"])
    return run_local(plan, run_folder=folder.path, script=job.script, args=job.args, launch=launch)


def tell_plan(plan: Plan) -> None:
    """The plan in a few lines, for people."""
    model, cluster = plan.job.model, plan.job.cluster
    print(f"plan: {model.name} on {cluster.name} as {plan.layout.brief()}", file=sys.stderr)
    for reason in plan.why:
        print(f"  {reason}", file=sys.stderr)


def prepare(plan: Plan, settings: Settings, *, name: str, path: Path | None = None) -> RunFolder:
    """The run folder (at `path`, else run_dir) with its plan.json and config.yaml, made before any process starts."""
    given = path or settings.config["run_dir"]
    folder = create_run_folder(Path(given)) if given else new_run_folder(name)
    write_plan(plan, folder.path)
    (folder.path / "config.yaml").write_text(as_yaml(settings.config))
    return folder
