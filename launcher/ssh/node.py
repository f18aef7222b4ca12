"""The agent of one host: `python -P -m launcher.ssh.node RUN_FOLDER NODE NAME`, started by launcher/ssh/keeper.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from launcher import env
from launcher.agent.launch import read_launch
from launcher.agent.node import join
from launcher.console import notify
from launcher.errors import LauncherError
from launcher.planner import read_plan
from launcher.rendezvous.authentication import SECRET
from launcher.rendezvous.config import Meeting, split_endpoint
from launcher.run.folder import RunFolder


def run_node(run_folder: Path, *, node: int, name: str) -> int:
    """Start this host's ranks and keep them until the job is over; returns 0, or 1 where it failed."""
    names = RunFolder(run_folder)
    plan, launch = read_plan(names.present_plan), read_launch(names.launch).settings
    run_id = env.take(env.RUN_ID) or ""
    host, port = split_endpoint(env.take(env.COORDINATOR) or "")
    meeting = Meeting(run_id, host, port, env.take(SECRET) or "")
    return join(run_folder, plan, launch, node=node, name=name, meeting=meeting)


def main(argv: Sequence[str]) -> int:
    try:
        return run_node(Path(argv[0]), node=int(argv[1]), name=argv[2])
    except LauncherError as error:
        notify(str(error))
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
