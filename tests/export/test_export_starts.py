"""Exported folders really start: ranks in the plan's order, on one machine and as two nodes of it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ports import free_port

from launcher.cli import main

pytestmark = pytest.mark.slow
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
PROBE = """
import json, os, pathlib, sys
import torch.distributed as dist
dist.init_process_group("gloo")
found = [None] * dist.get_world_size()
dist.all_gather_object(found, [int(os.environ[k]) for k in ("RANK", "GROUP_RANK", "LOCAL_RANK")])
{more}
if dist.get_rank() == 0:
    pathlib.Path(os.environ["FOUND"]).write_text(json.dumps(found))
dist.destroy_process_group()
os._exit(0)  # taking an interpreter with torch apart costs half a second of CPU
"""


def exported(tmp_path: Path, *words: str, more: str = "") -> Path:
    """The folder of an export with a script that writes down who its ranks are."""
    folder = tmp_path / "out"
    assert main(["export", *words, f"out={folder}"]) == 0
    (folder / "probe.py").write_text(PROBE.format(more=more))
    return folder


def start(folder: Path, **variables: str) -> subprocess.Popen[str]:
    environment = ENVIRONMENT | {"SCRIPT": "probe.py", "FOUND": str(folder / "found.json"), **variables}
    return subprocess.Popen(
        ["bash", folder / "start.sh"], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def ranks_of(folder: Path) -> list[list[int]]:
    with (folder / "ranks.csv").open() as file:
        return [[int(row[key]) for key in ("rank", "node", "local_rank")] for row in csv.DictReader(file)]


def test_torchrun_starts_two_nodes_in_the_plans_order(tmp_path: Path) -> None:
    cluster = ["cluster.num_nodes=2", "cluster.node.num_gpus=2", "cluster.node.num_nics=1", "cluster.node.nic_gbps=10"]
    folder = exported(tmp_path, "to=torchrun", *cluster, "layout.tp=2", "layout.pp=1", "layout.dp=2")
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    second, first = (start(folder, NODE_RANK=node, **meeting) for node in "10")
    for process in (first, second):
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output[-2000:]
    assert json.loads((folder / "found.json").read_text()) == ranks_of(folder)


def test_a_node_that_does_not_know_its_number_is_asked_for_it(tmp_path: Path) -> None:
    cluster = ["cluster.num_nodes=2", "cluster.node.num_gpus=2", "cluster.node.num_nics=1", "cluster.node.nic_gbps=10"]
    process = start(exported(tmp_path, "to=torchrun", *cluster, "layout.dp=4", "layout.tp=1", "layout.pp=1"))
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and "set it to the number of this node" in output


def test_accelerate_starts_fsdp_with_the_plans_mesh(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    more = """
from accelerate.parallelism_config import ParallelismConfig
mesh = ParallelismConfig().build_device_mesh("cpu")
place = dict(zip(mesh.mesh_dim_names, mesh.get_coordinate()))
steps = int(os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"])
dist.all_gather_object(found, [place["tp"], place["dp_shard"], steps])
"""
    words = ["cluster=dgx_a100_80g", "cluster.node.num_gpus=4", "model=gpt3_350m", "train.global_batch=16"]
    pins = ["layout.tp=2", "layout.dp=2", "layout.zero_stage=3", "layout.micro_batch=2", "layout.cp=1"]
    folder = exported(tmp_path, "to=accelerate", *words, *pins, more=more)
    process = start(folder, MASTER_PORT=str(free_port()))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-2000:]
    with (folder / "ranks.csv").open() as file:
        wanted = [[int(row["tp"]), int(row["dp"]), 4] for row in csv.DictReader(file)]
    assert json.loads((folder / "found.json").read_text()) == wanted
