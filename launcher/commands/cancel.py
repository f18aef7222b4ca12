"""`launcher cancel RUN`: stop a run, here or under Slurm."""

from __future__ import annotations

from launcher.commands.invocation import Invocation
from launcher.commands.named import named_run, options, run_folder, submitted
from launcher.run import status as runs


def run(invocation: Invocation) -> int:
    name, words = named_run(invocation.overrides, command="cancel")
    options(words, allowed=[])
    if submitted(name):
        from launcher.slurm import life  # and with it the planner, which a run on this machine does not need

        print(life.cancel(life.SubmittedRun.find(name)))
        return 0
    print(runs.stop(run_folder(name)))
    return 0
