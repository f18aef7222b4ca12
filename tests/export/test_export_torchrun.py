"""The start scripts of exports: torchrun's own parser reads the plan's nodes, ranks and order."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from export_plans import PLANS, SCHEDULED, plan_of

from launcher.export.ranks import START_FILE
from launcher.export.targets import target

TOOLS = ("torchrun", "deepspeed", "megatron", "nemo", "torchtitan", "lightning")
SAID = [
    (tool, name)
    for tool in TOOLS
    for name in (SCHEDULED if tool == "torchrun" else PLANS)
    if not list(target(tool).cannot((plan := plan_of(name)).job, plan.layout))
]


@pytest.mark.parametrize(("tool", "name"), SAID)
def test_torchruns_own_parser_reads_nodes_ranks_and_order(tool: str, name: str, tmp_path: Path) -> None:
    run = pytest.importorskip("torch.distributed.run", exc_type=ImportError)
    plan = plan_of(name)
    last = plan.placement.num_nodes - 1
    words = words_of_start(target(tool).write(plan).files[START_FILE], tmp_path, node=last)
    config, _, _ = run.config_from_args(run.get_args_parser().parse_args(words))
    assert (config.min_nodes, config.max_nodes) == (plan.placement.num_nodes,) * 2
    assert config.nproc_per_node == plan.placement.ranks_per_node
    assert (config.rdzv_backend, config.rdzv_endpoint) == ("static", "node0:29500")
    assert config.rdzv_configs["rank"] == last


def words_of_start(script: str, folder: Path, *, node: int) -> list[str]:
    """What the script of a node gives to torchrun."""
    stub = folder / "torchrun"
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    (folder / START_FILE).write_text(script)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "NODE_RANK": str(node), "MASTER_ADDR": "node0"}
    done = subprocess.run(["bash", folder / START_FILE], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()
