"""`launcher discover`: inspect this node and Slurm, or read command output of other nodes, and write a cluster file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from launcher.cluster.discover import ClusterFile, discover, discover_from, texts_of_files, write_cluster_file
from launcher.cluster.machine import COLLECTOR
from launcher.commands.invocation import Invocation
from launcher.commands.named import options, says_json
from launcher.errors import InputError


def run(invocation: Invocation) -> int:
    wanted = options(invocation.overrides, allowed=["name", "force", "dry_run", "from", "collector", "output"])
    as_json = says_json(wanted)
    flags = {key: _flag(key, wanted.get(key, "false")) for key in ("force", "dry_run", "collector")}
    if flags["collector"]:
        print(json.dumps({"collector": COLLECTOR}) if as_json else COLLECTOR)
        print("run it on each node and pass the files with its output: launcher discover from=FILE,…", file=sys.stderr)
        return 0
    file = _found(wanted.get("from"), wanted.get("name"))
    for note in file.notes:
        print(note, file=sys.stderr)
    path = None if flags["dry_run"] else write_cluster_file(file, Path("configs/cluster"), force=flags["force"])
    if as_json:
        where = None if path is None else str(path)
        print(json.dumps({"name": file.name, "file": where, "text": file.text, "notes": list(file.notes)}))
        return 0
    if path is None:
        print(file.text, end="")
        return 0
    print(path)
    first = "fill in its ???, then " if "???" in file.text.partition("defaults:")[2] else ""
    print(f"{first}use it with: launcher plan cluster={file.name}", file=sys.stderr)
    return 0


def _found(given: str | None, name: str | None) -> ClusterFile:
    if given is None:
        return discover(name)
    names = [part.strip() for part in given.strip("[]").split(",") if part.strip()]
    if name is None:
        raise InputError("from=… describes another machine: give the cluster a name, for example name=site")
    return discover_from(texts_of_files(names), name)


def _flag(key: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise InputError(f"{key}={value} must be true or false")
    return value == "true"
