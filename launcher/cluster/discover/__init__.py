"""Finds out what a cluster is, from this node and Slurm or from recorded texts, and writes it down as
configs/cluster/<name>.yaml.

What is not found stays `???`: composing such a file names the key to fill in. Nothing is guessed.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launcher.cluster import commands
from launcher.cluster.discover.cluster_file import ClusterFile, cpu_file, gpu_file
from launcher.cluster.discover.fabric import fabric_view
from launcher.cluster.discover.node import NodeView, node_views, usual_node
from launcher.cluster.discover.sources import Seen, Text, read_texts, texts_of_files
from launcher.cluster.machine import Machine, read_machine
from launcher.errors import InputError

__all__ = ["ClusterFile", "Text", "discover", "discover_from", "texts_of_files", "write_cluster_file"]


def discover(
    name: str | None = None, *, run: commands.Runner = commands.run, machine: Machine | None = None
) -> ClusterFile:
    """The cluster that this node belongs to; raises InputError where the GPUs cannot be described by one file.

    name: of the cluster file; the host name by default. run and machine: where texts and facts come from.
    """
    machine = machine or read_machine()
    host = socket.gethostname().partition(".")[0]
    name = checked_name(name) if name is not None else re.sub(r"[^a-z0-9_]+", "_", host.lower()).strip("_")
    listed = run(("nvidia-smi", "-L"))
    if listed.text is None and listed.installed and "No devices" not in listed.problem:
        raise InputError(
            f"nvidia-smi fails here, so that the GPUs are unknown ({listed.problem}): repair the driver first"
        )
    texts = [Text("", "nvidia-smi -L", listed.text)] if listed.text is not None else []
    notes = []
    if listed.text is not None:
        topo = run(("nvidia-smi", "topo", "-m"))
        texts += [Text("", "nvidia-smi topo -m", topo.text)] if topo.text is not None else []
        notes += [f"NVLink is unknown: {topo.problem}"] if topo.text is None else []
    slurm, slurm_notes = _slurm_texts(run)
    evidence = read_texts([*texts, *slurm])
    evidence.seen.append(Seen("", "/proc and /sys", machine=machine))
    [view] = node_views(evidence.seen)
    fabric = fabric_view(evidence, host)
    if listed.text is None:
        note = f"no GPUs found ({listed.problem}): described as CPU ranks, one to a core"
        found = cpu_file(name, view, fabric, (note,))
    else:
        found = gpu_file(name, view, fabric, here=True)
    return replace(found, where=f"on {host}").with_notes([*notes, *slurm_notes])


def _slurm_texts(run: commands.Runner) -> tuple[list[Text], list[str]]:
    nodes = run(("scontrol", "show", "node", "-o"))
    if nodes.text is None:
        return [], [f"no Slurm: {nodes.problem}"]
    shown = run(("scontrol", "show", "topology"))
    texts = [Text("", "scontrol show node", nodes.text)]
    if shown.text is None or "Name=" not in shown.text:
        return texts, ["Slurm shows no switches: cluster.nodes_per_leaf stays 0, one leaf for all"]
    return [*texts, Text("", "scontrol show topology", shown.text)], []


def discover_from(texts: Sequence[Text], name: str) -> ClusterFile:
    """The cluster that recorded texts describe; raises InputError where they cannot be read or say nothing of it."""
    evidence = read_texts(texts)
    views = node_views(evidence.seen)
    view, odd = usual_node(views) if views else (NodeView(""), [])
    view = replace(view, problems=tuple(odd))
    found = gpu_file(checked_name(name), view, fabric_view(evidence, host=""), here=False, num_nodes=len(views) or 1)
    where = f"from {', '.join(dict.fromkeys(text.source for text in texts))}"
    return replace(found, where=where).with_notes(evidence.notes)


def write_cluster_file(file: ClusterFile, folder: Path, *, force: bool = False) -> Path:
    """Write `folder`/<name>.yaml, complete or not at all; raises InputError where it exists and `force` is not set."""
    path = folder / f"{file.name}.yaml"
    temporary = folder / f".{file.name}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_text(file.text, encoding="utf-8")
        if force:
            temporary.replace(path)
        else:
            path.hardlink_to(temporary)  # unlike rename, fails where the file exists
            temporary.unlink()
    except FileExistsError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"{path} exists: give another name, or force=true to overwrite it") from error
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"cannot write {path} ({error.strerror}): run it in a folder of yours") from error
    return path


def checked_name(name: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        return name
    raise InputError(f"{name!r} cannot name a cluster file: use letters, digits, _ and -")
