"""Runs a script as the ranks of a one-node plan, through `run_local`: `driver.py RUN_DIR SCRIPT RANKS JSON [ARGS]`.

JSON holds keys of `launch.*`. The tests use it instead of `launcher run`, which plans first.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shapes import cluster, job

from launcher.agent.settings import LaunchSettings
from launcher.errors import LauncherError
from launcher.fast_exit import end_process
from launcher.layout import Layout
from launcher.local.start import run_local
from launcher.planner import Plan, write_plan
from launcher.planner.record import Program, RunOptions
from launcher.run.folder import RunFolder


def one_node_plan(ranks: int, script: str, args: tuple[str, ...]) -> Plan:
    machine = cluster(domains=(ranks,))
    machine = replace(machine, node=replace(machine.node, cores=ranks))
    layout = Layout(tp=1, pp=1, dp=ranks, layer_split=(24,))
    options = RunOptions(program=Program(kind="script", target=script, args=args))
    return Plan(job(on=machine), layout, {}, (), options)


def main(run_dir: str, script: str, ranks: str, launch: str, *args: str) -> int:
    plan, folder = one_node_plan(int(ranks), script, args), Path(run_dir)
    folder.mkdir(exist_ok=True)
    write_plan(plan, RunFolder(folder).plan)
    settings = LaunchSettings.from_config({"warm": "never", **json.loads(launch)})
    try:
        return run_local(plan, run_folder=folder, launch=settings)
    except LauncherError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    end_process(main(*sys.argv[1:]))
