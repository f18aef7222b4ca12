"""A real training over two simulated nodes: the gpt recipe as dp2, with its losses."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "launch"))

from nodes import Nodes

from launcher.config.compose import load
from launcher.env import usable_cores
from launcher.files import read_lines
from launcher.planner import Plan
from launcher.planner.build import make_plan
from launcher.resources import resource
from launcher.run.folder import RunFolder
from launcher.worker.data.batches import standard_library_tokens, write_token_file

HOSTS = ("node2", "node10")
SMALL = ("model.layers=2", "model.seq_len=64", "train.global_batch=4", "tracking=none")
VOCAB = 256


def token_file(folder: Path) -> Path:
    """A data set that all runs of a comparison read."""
    path = folder / "stdlib.tokens"
    if not path.exists():
        write_token_file(path, standard_library_tokens(), vocab=VOCAB)
    return path


def plan_of_two_nodes(data: Path, *overrides: str) -> Plan:
    """gpt_tiny on two nodes of one CPU rank each, as dp2."""
    shape = (
        "cluster.num_nodes=2",
        "cluster.node.num_gpus=1",
        "cluster.node.num_nics=1",
        "cluster.node.nic_gbps=1",
        "layout.tp=1",
        "layout.pp=1",
        "layout.dp=2",
    )
    settings = load([*shape, *SMALL, f"train.data={data}", *overrides])
    return make_plan(settings.job, settings.request, settings.run_options, to_run=True)


def training(folder: Path, data: Path, *overrides: str, **launch: object) -> Nodes:
    """A job of two agents in a new folder, not started yet. Its two nodes share the cores of this machine."""
    folder.mkdir()
    plan = plan_of_two_nodes(data, *overrides)
    launch = {"omp_num_threads": max(1, usable_cores() // len(HOSTS)), **launch}
    return Nodes(folder, HOSTS, launch=launch, script=resource("recipes") / "gpt.py", plan=plan)


def losses(run: RunFolder) -> list[tuple[int, float]]:
    """(step, loss) of each line of metrics, in the order in which they were written."""
    return [(line["step"], line["loss"]) for line in read_lines(run.metrics)]
