"""The rendezvous of thousands of nodes, simulated on one machine: agents without ranks, real sockets and stores.

    python tests/benchmarks/many_nodes.py [--nodes 2000] [--processes 4]

Each process plays many nodes, one thread and one connection a node; the first plays node 0 and thereby coordinates.
Then one node is lost and comes back, which brings all nodes into a second round. And `--world` (16384): one rank of
so many GPUs builds the mesh and all groups of its plan on torch's fake process group. The last line is JSON.

torch's store looks up the name of each address that it connects to (torch 2.13). Thousands of nodes in a few processes
ask the resolver thousands of times at once, which real nodes do not: when it drops some, its patience of 2 × 5 s is
all that one would measure, so it is set to 1 s here.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

from launcher import process
from launcher.rendezvous.config import RendezvousConfig, free_port

ROUNDS = 2


def play(first: int, last: int, nodes: int, port: int) -> None:
    """Nodes first … last-1 through two rounds; node 1 is lost between them. They leave at the end of standard input."""
    from launcher.rendezvous.plan_ordered import PlanOrdered

    order = random.Random(first).sample(range(first, last), last - first)
    threading.stack_size(256 * 1024)
    ready = time.time()
    handlers = {}
    process.allow_open_files()

    def node(number: int) -> dict[str, float]:
        config = RendezvousConfig("many", "127.0.0.1", port, nodes, number, f"host{number}", join_timeout_s=600)
        handler = PlanOrdered(config)
        found: dict[str, float] = {"node": number, "ready": ready}
        for turn in range(ROUNDS):
            info = handler.next_rendezvous()
            found[f"met{turn}"] = time.time()
            if (info.rank, info.world_size) != (number, nodes):
                raise SystemExit(f"node {number} got rank {info.rank} of {info.world_size}")
            if turn == 0 and number == 1:
                handler._disconnect()  # as when its agent is killed
                found["lost"] = time.time()
                handler = PlanOrdered(config)
            elif turn == 0:
                while not handler.num_nodes_waiting():
                    process.readable([handler.fileno()], timeout_s=60)
        handlers[number] = handler
        return found

    with ThreadPoolExecutor(last - first) as pool:
        print(json.dumps(list(pool.map(node, order))), flush=True)
    sys.stdin.read()  # node 0 takes the coordinator and the store with it
    for number in sorted(handlers, reverse=True):
        handlers[number].shutdown()


def mesh_seconds(world: int) -> dict[str, float]:
    """One rank of `world` builds mesh and groups of tp8 × pp16 × dp on the fake process group."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from launcher.layout import Layout, RankGrid
    from launcher.worker.parallel.mesh import build_mesh

    grid = RankGrid.of(Layout(tp=8, pp=16, dp=world // 128))
    dist.init_process_group("fake", rank=777, world_size=world, store=FakeStore())
    began, used = time.perf_counter(), time.process_time()
    axes = build_mesh(grid, rank=777, device_type="cpu")
    for axis in grid.axes:
        ranks = dist.get_process_group_ranks(axes.group(axis))
        if tuple(ranks) != grid.group(axis, 777):
            raise SystemExit(f"the {axis} group of rank 777 is {ranks}, not {grid.group(axis, 777)}")
    seconds, cpu = time.perf_counter() - began, time.process_time() - used
    dist.destroy_process_group()
    return {"world": world, "seconds": round(seconds, 3), "cpu_seconds": round(cpu, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--world", type=int, default=16384)
    parser.add_argument("--play", type=int, nargs=3, metavar=("FIRST", "LAST", "PORT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.play:
        first, last, port = arguments.play
        play(first, last, arguments.nodes, port)
        return
    mesh = mesh_seconds(arguments.world)
    port = free_port("127.0.0.1")
    edges = [arguments.nodes * i // arguments.processes for i in range(arguments.processes + 1)]
    players = [
        subprocess.Popen(
            [sys.executable, __file__, "--nodes", str(arguments.nodes), "--play", str(a), str(b), str(port)],
            stdin=subprocess.PIPE,
            env={**os.environ, "RES_OPTIONS": "timeout:1 attempts:1"},
            stdout=subprocess.PIPE,
        )
        for a, b in pairwise(edges)
    ]
    found = [node for player in players for node in json.loads(player.stdout.readline() if player.stdout else b"")]
    for player in players:
        player.communicate(timeout=300)
    lost = next(node["lost"] for node in found if "lost" in node)
    report = {
        "nodes": len(found),
        "first_round_s": round(max(n["met0"] for n in found) - max(n["ready"] for n in found), 2),
        "after_loss_s": round(max(n["met1"] for n in found) - lost, 2),
        "connections_at_coordinator": 2 * len(found),
        "mesh": mesh,
        "load": os.getloadavg()[0],
    }
    print(f"{report}", file=sys.stderr)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
