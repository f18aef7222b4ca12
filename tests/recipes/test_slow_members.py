"""Real runs of the recipe collectives in which one thing is slow: the recipe names it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import preloaded
import pytest
from ports import free_port

from launcher.config.compose import load
from launcher.layout import Layout
from launcher.planner.record import Plan, write_plan
from launcher.resources import resource
from launcher.run.folder import RunFolder

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "slurm"))
from testcluster_network import Network  # noqa: E402

RECIPE = str(resource("recipes") / "collectives.py")
IN_NODE = str(Path(__file__).with_name("rank_of_a_node.py"))
TOOLS = f"{os.environ['PATH']}:/usr/sbin:/sbin"
MAY_LIMIT = os.geteuid() == 0 and all(shutil.which(tool, path=TOOLS) for tool in ("ip", "tc", "nsenter"))


def environment(folder: Path, *, num_nodes: int, sizes: str) -> dict[str, str]:
    """A plan of tp2 × dp2 over `num_nodes` nodes, and what its ranks find in their environment."""
    network = ["cluster.node.num_nics=1", "cluster.node.nic_gbps=10"] if num_nodes > 1 else []
    overrides = [f"cluster.num_nodes={num_nodes}", f"cluster.node.num_gpus={4 // num_nodes}", *network]
    options = ["recipe.operations=[all_reduce]", f"recipe.sizes={sizes}", "recipe.seconds=0.01", "recipe.warmup=1"]
    more = ["recipe.world=false", "recipe.alone=false"]
    settings = load(["recipe=collectives", *overrides, *options, *more])
    write_plan(Plan(settings.job, Layout(tp=2, pp=1, dp=2), {}, (), settings.run_options), RunFolder(folder).plan)
    port = str(free_port())
    where = {"LAUNCHER_PLAN": str(RunFolder(folder).plan), "LAUNCHER_RUN_DIR": str(folder)}
    return {**os.environ, **where, "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "PATH": TOOLS}


def verdict(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RunFolder(folder).result.read_text())["verdict"]
    return found


@pytest.mark.slow
def test_a_rank_that_sleeps_is_named(tmp_path: Path) -> None:
    env = environment(tmp_path, num_nodes=1, sizes="64:1K:16") | {"SLEEPY_RANK": "2", "RECIPE": RECIPE}
    driver, script = (str(Path(__file__).with_name(name)) for name in ("fork_ranks.py", "sleepy_rank.py"))
    words = [sys.executable, driver, script, "1", "4", env["MASTER_PORT"]]
    done = preloaded.run(words, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)

    assert done.returncode == 0, done.stderr
    found = verdict(tmp_path)
    assert found["ranks"] == [2], found
    assert "rank 2" in found["text"] and found["text"] in done.stderr


@contextmanager
def nodes(network: Network, env: dict[str, str], folder: Path, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """One rank in each of `count` nodes: a network namespace behind a bridge, and a host name."""
    network.start()
    processes: list[subprocess.Popen[str]] = []
    try:
        for rank in range(count):
            own = {"RANK": str(rank), "WORLD_SIZE": str(count), "GROUP_RANK": str(rank), "LOCAL_RANK": "0"}
            own |= {"LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": network.address(0), "GLOO_SOCKET_IFNAME": "eth0"}
            words = [sys.executable, IN_NODE, RECIPE, network.address(rank), f"node{rank}"]
            with (folder / f"rank-{rank}.log").open("w") as log:
                processes.append(preloaded.Popen(words, env=env | own, cwd=folder, stdout=log, stderr=log, text=True))
            network.connect(rank, processes[-1].pid)
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
        network.stop()


@pytest.mark.slow
@pytest.mark.skipif(not MAY_LIMIT, reason="needs root, ip and tc")
def test_a_node_behind_a_slow_link_is_named(tmp_path: Path) -> None:
    """Its link carries 40 Mbit/s, the others what this machine copies."""
    env = environment(tmp_path, num_nodes=4, sizes="256K:512K:2")
    network = Network(os.getpid() % 250)
    network.bridge, network.subnet = f"slow{os.getpid() % 10**6}", f"10.86.{os.getpid() % 250}"
    with nodes(network, env, tmp_path, 4) as ranks:
        network.slow_down(1, ranks[1].pid, "40mbit")
        codes = [rank.wait(timeout=240) for rank in ranks]

    assert codes == [0, 0, 0, 0], (tmp_path / "rank-0.log").read_text()
    found = verdict(tmp_path)
    assert found["ranks"] == [1] and found["hosts"] == ["node1"], found
    assert "rank 1 on node1" in found["text"]
