"""SkyPilot's own classes read a task, and this prints what they make of it. Run it by an interpreter that has sky."""

from __future__ import annotations

import json
import sys

import sky

task = sky.Task.from_yaml(sys.argv[1])
(resources,) = task.resources
print(
    json.dumps(
        {
            "num_nodes": task.num_nodes,
            "accelerators": resources.accelerators,
            "envs": task.envs,
            "run": task.run,
            "workdir": task.workdir,
        }
    )
)
