"""`launcher discover`: look at this node (and Slurm) and write configs/cluster/<name>.yaml where we stand."""

from __future__ import annotations

import sys
from pathlib import Path

from launcher.cluster.discover import discover, write_cluster_file
from launcher.commands.common import options
from launcher.commands.invocation import Invocation
from launcher.errors import InputError


def run(invocation: Invocation) -> int:
    wanted = options(invocation.overrides, allowed=["name", "force", "dry_run"])
    for key in ("force", "dry_run"):
        if wanted.get(key, "false") not in ("true", "false"):
            raise InputError(f"{key}={wanted[key]} must be true or false")
    file = discover(wanted.get("name"))
    for note in file.notes:
        print(note, file=sys.stderr)
    if wanted.get("dry_run") == "true":
        print(file.text, end="")
        return 0
    path = write_cluster_file(file, Path("configs/cluster"), force=wanted.get("force") == "true")
    print(path)
    print(f"use it with: launcher plan cluster={file.name}", file=sys.stderr)
    return 0
