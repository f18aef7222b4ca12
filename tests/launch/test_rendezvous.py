"""The rendezvous itself, with real sockets and stores: agents without ranks, and plain torchrun."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from launcher.errors import InputError
from launcher.rendezvous.config import RendezvousConfig, derived_port, free_port, node_of_host, refuse_hidden_loopback

HOSTS = ("node2", "node10", "NODE1", "node1", "a.b", "a.c", "10.0.0.9", "10.0.0.10", "Node2", "z", "0", "node-02")


@pytest.mark.parametrize(
    ("name", "hosts", "node"),
    [
        ("node2", ("node10", "node2"), 1),
        ("NODE1", ("node1", "NODE1"), 1),
        ("node1", ("node1", "NODE1"), 0),
        ("Node1", ("node1", "NODE1"), None),  # both fit, so neither is taken
        ("node7.cluster.local", ("node6", "node7"), 1),
        ("node7", ("node6.cluster.local", "node7.cluster.local"), 1),
        ("NODE7", ("node6", "node7"), 1),
        ("spare", ("node6", "node7"), None),
    ],
)
def test_a_host_finds_its_place_by_name(name: str, hosts: tuple[str, ...], node: int | None) -> None:
    assert node_of_host(name, hosts) == node


def test_the_port_of_a_run_is_the_same_everywhere_and_not_ephemeral() -> None:
    ports = {derived_port(f"run{i}") for i in range(500)}
    assert len(ports) > 450
    assert all(20000 <= port < 30000 for port in ports)
    assert derived_port("job-17") == derived_port("job-17")


def test_a_host_name_that_means_loopback_is_refused_for_several_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: [(2, 1, 6, "", ("127.0.1.1", 0))])
    with pytest.raises(InputError, match=r"127\.0\.1\.1.*other 3 nodes cannot reach"):
        refuse_hidden_loopback("node1", num_nodes=4)
    refuse_hidden_loopback("node1", num_nodes=1)
    refuse_hidden_loopback("127.0.1.1", num_nodes=4)


def meeting(node: int, hosts: tuple[str, ...], port: int) -> RendezvousConfig:
    return RendezvousConfig(
        run_id="trial",
        host="127.0.0.1",
        port=port,
        num_nodes=len(hosts),
        node=node,
        name=hosts[node],
        hosts=hosts,
        join_timeout_s=60,
        rejoin_timeout_s=60,
    )


@pytest.mark.slow
def test_a_hundred_random_arrivals_of_adversarial_names_get_the_plans_ranks() -> None:
    from launcher.rendezvous.plan_ordered import PlanOrdered

    chance = random.Random(0)
    for _ in range(100):
        hosts = tuple(chance.sample(HOSTS, chance.randint(2, 6)))
        port, arrival = free_port("127.0.0.1"), chance.sample(range(len(hosts)), len(hosts))
        turn = threading.Barrier(len(hosts))

        def arrive(place: int, hosts=hosts, port=port, arrival=arrival, turn=turn) -> tuple[int, int, int, str]:
            node = arrival[place]
            turn.wait()
            time.sleep(0.002 * place)
            handler = PlanOrdered(meeting(node, hosts, port))
            info = handler.next_rendezvous()
            if info.rank == 0:
                info.store.set("from-0", hosts[0])
            said = info.store.get("from-0").decode()
            assert handler.num_nodes_waiting() == 0
            turn.wait()
            handler.shutdown()
            return node, info.rank, info.world_size, said

        with ThreadPoolExecutor(len(hosts)) as pool:
            results = list(pool.map(arrive, range(len(hosts))))
        assert sorted(results) == [(node, node, len(hosts), hosts[0]) for node in range(len(hosts))]


@pytest.mark.slow
def test_another_run_and_garbage_do_not_disturb_a_coordinator() -> None:
    import socket

    from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousConnectionError

    from launcher.rendezvous.plan_ordered import PlanOrdered

    hosts, port = ("a", "b"), free_port("127.0.0.1")
    first = PlanOrdered(meeting(0, hosts, port))
    for noise in (
        b"GET / HTTP/1.0\r\n\r\n",
        b"\x00" * 100_000,
        b'{"run": "trial"}\n',
        b'{"run": "trial", "op": "join"}\n',
        b"[]\n",
    ):
        with socket.create_connection(("127.0.0.1", port)) as intruder:
            intruder.sendall(noise)
            intruder.shutdown(socket.SHUT_WR)
            intruder.settimeout(10)
            while intruder.recv(4096):
                pass
    stranger = PlanOrdered(RendezvousConfig("other run", "127.0.0.1", port, 2, 1, "b", join_timeout_s=10))
    with pytest.raises(RendezvousConnectionError, match="serves another run"):
        stranger.next_rendezvous()
    second = PlanOrdered(meeting(1, hosts, port))
    with ThreadPoolExecutor(2) as pool:
        infos = list(pool.map(lambda handler: handler.next_rendezvous(), (first, second)))
    assert [info.rank for info in infos] == [0, 1]
    assert infos[0].store.timeout == timedelta(seconds=300)
    second.close_for_all("rank 1 failed first")
    second.shutdown()
    deadline = time.monotonic() + 30
    while not first.num_nodes_waiting():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(RendezvousClosedError, match="rank 1 failed first"):
        first.next_rendezvous()
    first.shutdown()


ORDER_SCRIPT = """
import os, sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
seen = [None] * dist.get_world_size()
dist.all_gather_object(seen, sys.argv[1])
print("order", os.environ["GROUP_RANK"], *seen, flush=True)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_plain_torchrun_keeps_the_plans_order_with_our_rendezvous(tmp_path: Path) -> None:
    script, hosts, port = tmp_path / "order.py", ("node2", "node10", "NODE1"), free_port("127.0.0.1")
    script.write_text(ORDER_SCRIPT)
    agents = []
    for node in (2, 0, 1):
        command = [
            sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=launcher", "--rdzv-id=order",
            f"--rdzv-endpoint=127.0.0.1:{port}", "--nnodes=3", "--nproc-per-node=1",
            f"--rdzv-conf=hosts={'+'.join(hosts)},host={hosts[node]}", str(script), hosts[node],
        ]  # fmt: skip
        agents.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    said = [agent.communicate(timeout=240) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0, 0], said
    for node, (out, _) in zip((2, 0, 1), said, strict=True):
        assert re.findall(r"order (\d) (.*)", out) == [(str(node), " ".join(hosts))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("conf", "told"),
    [
        (["--rdzv-conf=host=x"], "order of the nodes is not known"),
        (["--rdzv-conf=hosts=a+b+c"], "give --nnodes=3"),
    ],
)
def test_torchrun_without_an_order_says_what_is_missing(tmp_path: Path, conf: list[str], told: str) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=launcher", "--rdzv-id=x",
        "--rdzv-endpoint=127.0.0.1:1", "--nnodes=2", *conf, str(tmp_path / "none.py"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode != 0
    assert told in done.stderr
