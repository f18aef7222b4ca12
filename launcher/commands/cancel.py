"""`launcher cancel RUN`: stop a run, here or under Slurm."""

from __future__ import annotations

import json

from launcher.commands.invocation import Invocation
from launcher.commands.named import named_run, options, run_folder, says_json, submitted
from launcher.run import status as runs


def run(invocation: Invocation) -> int:
    name, words = named_run(invocation.overrides, command="cancel")
    as_json = says_json(options(words, allowed=["output"]))
    if submitted(name):
        from launcher.slurm import life  # and with it the planner, which a run on this machine does not need

        answer = life.cancel(life.SubmittedRun.find(name))
    else:
        answer = runs.stop(run_folder(name))
    print(json.dumps({"run": name, "answer": answer}) if as_json else answer)
    return 0
