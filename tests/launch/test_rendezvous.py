"""The rendezvous itself, with real sockets and stores: agents without ranks, and plain torchrun."""

from __future__ import annotations

import os
import random
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import preloaded
import pytest
from ports import free_port
from torch.distributed import DistStoreError, TCPStore

from launcher import process
from launcher.errors import InputError
from launcher.rendezvous import store
from launcher.rendezvous.authentication import (
    ANSWER_BYTES,
    NONCE_BYTES,
    PROOF_BYTES,
    REFUSAL,
    SECRET,
    JobKey,
    authenticate,
    new_nonce,
)
from launcher.rendezvous.config import (
    RendezvousConfig,
    derived_port,
    derived_ports,
    endpoint,
    node_of_host,
    refuse_hidden_loopback,
    split_endpoint,
)
from launcher.rendezvous.coordinator import Coordinator, PortTaken, most_strangers
from launcher.rendezvous.membership import Membership
from launcher.rendezvous.messages import Join, MessageError, decode, encode, read_paces

KEY = JobKey.of("trial", "hush")

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


def test_a_run_has_several_ports_and_one_that_was_given_is_the_only_one() -> None:
    assert config(0, ("a",), None).ports == derived_ports("trial")
    assert derived_ports("trial")[0] == derived_port("trial")
    assert min(len({*derived_ports(f"run{i}")}) for i in range(500)) > 1
    assert config(0, ("a",), 17).ports == (17,)


def test_a_host_name_that_means_loopback_is_refused_for_several_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: [(2, 1, 6, "", ("127.0.1.1", 0))])
    with pytest.raises(InputError, match=r"127\.0\.1\.1.*other 3 nodes cannot reach"):
        refuse_hidden_loopback("node1", num_nodes=4)
    refuse_hidden_loopback("node1", num_nodes=1)
    refuse_hidden_loopback("127.0.1.1", num_nodes=4)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("node2:29400", ("node2", 29400)),
        ("node2", ("node2", None)),
        ("10.0.0.2:29400", ("10.0.0.2", 29400)),
        ("[::1]:29400", ("::1", 29400)),
        ("[fe80::1%eth0]:29400", ("fe80::1%eth0", 29400)),
        ("[::1]", ("::1", None)),
        ("::1", ("::1", None)),
    ],
)
def test_an_endpoint_may_be_a_name_or_an_address_of_either_kind(text: str, found: tuple[str, int | None]) -> None:
    assert split_endpoint(text) == found
    if found[1]:
        assert endpoint(*found) == text  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["", ":1", "a:", "a:0", "a:65536", "a:²", "[a]:1", "[::1]:0", "a:1:2", "::1]:5", "a b:1"]
)
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"must be HOST:PORT"):
        split_endpoint(text)


def test_proofs_hold_for_the_same_secret_and_run_id_alone() -> None:
    key, challenge, nonce = JobKey.of("run", "secret"), new_nonce(), new_nonce()
    answer = key.answer(challenge, nonce)
    reply = key.reply(challenge, answer)
    assert reply is not None
    assert key.accepts(reply, challenge, nonce)
    for other in (JobKey.of("run", "Secret"), JobKey.of("run2", "secret"), JobKey.of("run", "")):
        assert other.reply(challenge, answer) is None
        assert not other.accepts(reply, challenge, nonce)
    assert key.reply(new_nonce(), answer) is None  # heard on the network, and sent again
    assert not key.accepts(answer[-PROOF_BYTES:], challenge, nonce)  # the agent's own proof, sent back to it
    assert "secret" not in repr(key)
    assert "hush" not in repr(RendezvousConfig("run", "::1", 1, 2, 0, "a", secret="hush"))


@pytest.mark.parametrize(
    "message",
    [
        {"node": 10**400, "host": "a"},
        {"node": 1.5, "host": "a"},
        {"node": True, "host": "a"},
        {"node": "1", "host": "a"},
        {"node": [], "host": "a"},
        {"node": 0},
        {"node": 0, "host": 7},
        {"node": 0, "host": "a" * 256},
        {"node": 0, "host": "a", "round": -1},
        {"node": 0, "host": "a", "round": float("inf")},
    ],
)
def test_a_join_of_wrong_types_or_odd_numbers_is_no_message(message: dict[str, Any]) -> None:
    with pytest.raises(MessageError):
        Join.from_message({"round": 0, **message})


@pytest.mark.parametrize(
    "paces",
    [
        [],
        {"a": [1, 1.0]},
        {"0": [1]},
        {"0": [1, float("nan")]},
        {"0": [1, -1]},
        {"0": [1.5, 1]},
        {"0": {}},
        {"9" * 400: [1, 1]},
    ],
)
def test_paces_of_wrong_types_or_odd_numbers_are_no_message(paces: Any) -> None:
    with pytest.raises(MessageError):
        read_paces({"paces": paces})


def config(node: int | None, hosts: tuple[str, ...], port: int | None, **more: Any) -> RendezvousConfig:
    common = {"run_id": "trial", "host": "127.0.0.1", "port": port, "num_nodes": len(hosts), "hosts": hosts}
    times = {"join_timeout_s": 60, "rejoin_timeout_s": 60}
    name = "spare" if node is None else hosts[node]
    return RendezvousConfig(**{**common, **times, "node": node, "name": name, "secret": "hush", **more})


@pytest.mark.slow
def test_a_hundred_random_arrivals_of_adversarial_names_get_the_plans_ranks() -> None:
    from launcher.rendezvous.plan_ordered import PlanOrdered

    chance = random.Random(0)
    for _ in range(100):
        hosts = tuple(chance.sample(HOSTS, chance.randint(2, 6)))
        port, arrival = free_port(), chance.sample(range(len(hosts)), len(hosts))
        turn = threading.Barrier(len(hosts))

        def arrive(place: int, hosts=hosts, port=port, arrival=arrival, turn=turn) -> tuple[int, int, int, str]:
            node = arrival[place]
            turn.wait()
            time.sleep(0.002 * place)
            handler = PlanOrdered(config(node, hosts, port))
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


def send_and_read(port: int, *pieces: bytes) -> bytes:
    """Everything that the coordinator says to a stranger until it ends the connection."""
    said = b""
    with socket.create_connection(("127.0.0.1", port)) as intruder, suppress(ConnectionError):
        intruder.settimeout(30)
        for piece in pieces:
            intruder.sendall(piece)
        with suppress(OSError):
            intruder.shutdown(socket.SHUT_WR)
        while data := intruder.recv(4096):
            said += data
    return said


def proven(port: int, key: JobKey) -> socket.socket:
    """A connection of somebody who has the job's secret."""
    connection = socket.create_connection(("127.0.0.1", port))
    authenticate(connection, key, timeout_s=30)
    return connection


NOISE = (
    b"GET / HTTP/1.0\r\n\r\n",
    b"\x00" * 100_000,
    b"[" * 60_000 + b"\n",
    b'{"run": "trial", "op": "close", "reason": "x"}\n',
    b'{"run": "other", "op": "join"}\n',
)
ODD = (
    b"[" * 60_000 + b"\n",
    b"[]\n",
    b"\xff\xfe\n",
    b'{"op": "dance"}\n',
    b'{"op": ["join"]}\n',
    b'{"op": "join", "node": 1e999, "host": "b", "round": 0}\n',
    b'{"op": "join", "node": "1", "host": "b", "round": 0}\n',
    b'{"op": "join", "node": 1, "host": {}, "round": 0}\n',
    b'{"op": "join", "node": 1, "host": "b", "round": ' + b"9" * 5000 + b"}\n",
    b'{"op": "close"}\n',
    b"x" * 400_000,
)


@pytest.fixture
def coordinator() -> Iterator[Coordinator]:
    """One of a job of two nodes, which is waiting for both."""
    one = Coordinator(Membership(num_nodes=2), key=KEY, host="127.0.0.1", port=0, on_begin=lambda: {"store_port": 1})
    one.start()
    yield one
    one.close()


def begins(coordinator: Coordinator) -> bool:
    """Whether two agents of the job still get their round."""
    agents = [proven(coordinator.port, KEY) for _ in range(2)]
    for node, agent in enumerate(agents):
        agent.sendall(encode({"op": "join", "node": node, "host": f"host{node}", "round": 0}))
    said = [agent.makefile("rb").readline() for agent in agents]
    for agent in agents:
        agent.sendall(encode({"op": "leave"}))
        agent.close()
    return all(b'"go"' in line for line in said)


@pytest.mark.parametrize("noise", NOISE, ids=lambda noise: repr(noise[:12]))
def test_a_stranger_learns_nothing_and_changes_nothing(coordinator: Coordinator, noise: bytes) -> None:
    said = send_and_read(coordinator.port, noise)
    assert len(said) in (NONCE_BYTES, NONCE_BYTES + PROOF_BYTES)
    assert said[NONCE_BYTES:] in (b"", REFUSAL)
    assert begins(coordinator)


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: repr(odd[:50]))
def test_an_odd_message_ends_the_connection_of_its_sender_alone(coordinator: Coordinator, odd: bytes) -> None:
    with proven(coordinator.port, KEY) as peer:
        peer.settimeout(30)
        with suppress(ConnectionError):
            peer.sendall(odd)
            assert peer.recv(4096) == b""
    assert begins(coordinator)


def test_strangers_that_stay_idle_make_room_for_agents(coordinator: Coordinator) -> None:
    idle = [socket.create_connection(("127.0.0.1", coordinator.port)) for _ in range(most_strangers() + 50)]
    assert begins(coordinator)
    gone: set[socket.socket] = set()
    deadline = time.monotonic() + 60
    while len(gone) < 50 and time.monotonic() < deadline:
        waiting = {connection.fileno(): connection for connection in idle if connection not in gone}
        for connection in map(waiting.get, process.readable([*waiting], timeout_s=0.1)):
            with suppress(ConnectionError):
                if connection.recv(NONCE_BYTES):
                    continue
            gone.add(connection)
    for connection in idle:
        connection.close()
    assert len(gone) >= 50


def test_a_stranger_that_waits_is_dismissed(coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.rendezvous.coordinator.STRANGER_S", 0.2)
    with socket.create_connection(("127.0.0.1", coordinator.port)) as slow:
        slow.settimeout(30)
        assert len(slow.recv(NONCE_BYTES)) == NONCE_BYTES
        assert slow.recv(1) == b""
    with proven(coordinator.port, KEY) as silent:
        silent.settimeout(30)
        assert silent.recv(1) == b""
    assert begins(coordinator)


def test_a_process_without_free_descriptors_lets_agents_in_when_there_are_some(coordinator: Coordinator) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir()) + 1
    probes = [socket.socket() for _ in range(2)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 2, hard))
    try:
        for probe in probes:
            probe.connect(("127.0.0.1", coordinator.port))  # the kernel answers; accept has no descriptor
        time.sleep(0.5)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for probe in probes:
            probe.close()
    assert begins(coordinator)


def test_a_peer_that_does_not_read_is_ended_alone(coordinator: Coordinator) -> None:
    with proven(coordinator.port, KEY) as deaf:
        deaf.settimeout(30)
        with pytest.raises(ConnectionError):
            for _ in range(2000):
                deaf.sendall(encode({"op": "who"}) * 1000)
    assert begins(coordinator)


def test_a_round_whose_store_cannot_be_opened_is_over_for_all_with_the_reason() -> None:
    def fail() -> dict[str, Any]:
        raise InputError("no port is free")

    one = Coordinator(Membership(num_nodes=1), key=KEY, host="127.0.0.1", port=0, on_begin=fail)
    one.start()
    with proven(one.port, KEY) as agent:
        agent.sendall(encode({"op": "join", "node": 0, "host": "a", "round": 0}))
        assert decode(agent.makefile("rb").readline())["closed"].endswith("store: no port is free")
    one.close()


@pytest.mark.slow
def test_another_secret_and_another_run_are_refused_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.elastic.rendezvous import RendezvousConnectionError

    from launcher.rendezvous.plan_ordered import PlanOrdered

    monkeypatch.setattr("launcher.rendezvous.plan_ordered.REFUSED_S", 0.5)
    hosts, port = ("a", "b"), free_port()
    first = PlanOrdered(config(0, hosts, port))
    for other in ({"secret": "shout"}, {"run_id": "another"}, {"secret": ""}):
        with pytest.raises(RendezvousConnectionError, match=r"another secret .* or another run id") as refused:
            PlanOrdered(config(1, hosts, port, **other)).next_rendezvous()
        assert "hush" not in str(refused.value)
        assert "trial" not in str(refused.value)
    first.shutdown()


@pytest.mark.slow
def test_what_listens_first_on_the_coordinators_port_gets_nothing_of_the_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch.distributed.elastic.rendezvous import RendezvousConnectionError

    from launcher.rendezvous.plan_ordered import PlanOrdered

    monkeypatch.setattr("launcher.rendezvous.plan_ordered.REFUSED_S", 0.0)
    heard = b""
    with socket.create_server(("127.0.0.1", 0)) as impostor:
        agent = PlanOrdered(config(1, ("a", "b"), impostor.getsockname()[1], join_timeout_s=0.1))
        with ThreadPoolExecutor(1) as pool:
            joining = pool.submit(agent.next_rendezvous)
            while not joining.done():
                impostor.settimeout(1)
                with suppress(TimeoutError):
                    connection, _ = impostor.accept()
                    with connection:
                        connection.sendall(bytes(NONCE_BYTES))
                        heard += connection.recv(4096)
                        connection.sendall(heard[-PROOF_BYTES:])
            with pytest.raises(RendezvousConnectionError, match="is not the coordinator"):
                joining.result()
    assert b"hush" not in heard
    assert len(heard) % ANSWER_BYTES == 0


def free_run_id() -> str:
    """A run id with ports that are all free."""
    while True:
        run_id = f"trial{random.random()}"
        with suppress(OSError), ExitStack() as probes:
            for port in derived_ports(run_id):
                probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return run_id


def stranger(port: int, says: bytes | None) -> socket.socket:
    """A program on a port: it greets whoever comes and hears nothing; None: it closes."""
    listener = socket.create_server(("127.0.0.1", port))

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with suppress(OSError):
                    connection.sendall(says or b"")
                kept.append(connection) if says is not None else connection.close()

    kept: list[socket.socket] = []
    threading.Thread(target=serve, daemon=True).start()
    return listener


STRANGERS = {"silent": b"", "closing": None, "talking": b"220 mail.example.org ESMTP ready, and much more" * 3}


@pytest.mark.slow
@pytest.mark.parametrize("taken", [*STRANGERS, "another job"])
def test_nodes_meet_on_the_run_s_next_port_where_another_program_has_taken_the_first(
    taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from launcher.rendezvous.plan_ordered import PlanOrdered

    monkeypatch.setattr("launcher.rendezvous.plan_ordered.DIAL_S", 1.0)  # a silent one is left after that time
    monkeypatch.setattr("launcher.rendezvous.plan_ordered.REFUSED_S", 0.0)
    hosts, run_id = ("a", "b"), free_run_id()
    first_port, second_port = derived_ports(run_id)[:2]
    with ExitStack() as there:
        if taken in STRANGERS:
            there.enter_context(stranger(first_port, STRANGERS[taken]))
        else:
            other = Coordinator(Membership(num_nodes=2), key=KEY, host="127.0.0.1", port=first_port)
            other.start()
            there.callback(other.close)
        nodes = [PlanOrdered(config(node, hosts, None, run_id=run_id)) for node in (0, 1)]
        with ThreadPoolExecutor(2) as pool:
            infos = list(pool.map(lambda node: node.next_rendezvous(), nodes))
        assert [info.rank for info in infos] == [0, 1]
        assert [node._ports[0] for node in nodes] == [second_port] * 2
        for node in reversed(nodes):
            node.shutdown()


@pytest.mark.slow
def test_a_job_gets_no_second_coordinator_on_its_next_port() -> None:
    """As where an agent is started again before the old one has ended."""
    from launcher.rendezvous.plan_ordered import PlanOrdered

    run_id = free_run_id()
    first = PlanOrdered(config(0, ("a", "b"), None, run_id=run_id))
    with pytest.raises(PortTaken, match=str(derived_port(run_id))):
        PlanOrdered(config(0, ("a", "b"), None, run_id=run_id))
    first.shutdown()


def test_where_all_ports_are_taken_the_way_out_is_said() -> None:
    from launcher.rendezvous.plan_ordered import PlanOrdered

    run_id = free_run_id()
    with ExitStack() as there:
        for port in derived_ports(run_id):
            there.enter_context(stranger(port, None))
        with pytest.raises(InputError, match=r"a free port; set launch.coordinator=HOST:PORT"):
            PlanOrdered(config(0, ("a", "b"), None, run_id=run_id))


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_round_is_left_with_the_reason_of_the_node_that_ended_the_job(host: str) -> None:
    from torch.distributed.elastic.rendezvous import RendezvousClosedError

    from launcher.rendezvous.plan_ordered import PlanOrdered

    hosts, port = ("a", "b"), free_port(host)
    first, second = (PlanOrdered(config(node, hosts, port, host=host)) for node in (0, 1))
    with ThreadPoolExecutor(2) as pool:
        infos = list(pool.map(lambda handler: handler.next_rendezvous(), (first, second)))
    assert [info.rank for info in infos] == [0, 1]
    assert infos[1].bootstrap_store_info.master_addr == host
    assert infos[0].store.timeout == timedelta(seconds=300)
    second.close_for_all("rank 1 failed first")
    second.shutdown()
    deadline = time.monotonic() + 60
    while not first.num_nodes_waiting():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(RendezvousClosedError, match="rank 1 failed first"):
        first.next_rendezvous()
    first.shutdown()


def all_enter(*nodes: Any) -> None:
    with ThreadPoolExecutor(len(nodes)) as pool:
        list(pool.map(lambda node: node.next_rendezvous(), nodes))


@pytest.mark.slow
@pytest.mark.parametrize("coordinator", ["stays", "comes back"])
@pytest.mark.parametrize("asked", ["before the round", "before the round is over"])
def test_a_job_that_was_asked_to_stop_is_not_complete_after_a_new_round(coordinator: str, asked: str) -> None:
    """As where the agent of the coordinator dies while the ranks stop: the next ones soon end with exit code 0."""
    from launcher.rendezvous.plan_ordered import PlanOrdered

    hosts, port = ("a", "b"), free_port()
    first, second = (PlanOrdered(config(node, hosts, port)) for node in (0, 1))
    all_enter(first, second)
    if asked == "before the round":
        second.announce_stop("SIGHUP")
    if coordinator == "comes back":  # as after KILL: nobody closes the job
        first._disconnect()
        first._coordinator.close()
        if asked != "before the round":
            second.announce_stop("SIGHUP")
        first = PlanOrdered(config(0, hosts, port))
    elif asked != "before the round":
        first.all_finished()
        second.announce_stop("SIGHUP")
    all_enter(first, second)
    deadline = time.monotonic() + 60
    while [node.all_finished() for node in (first, second)] != [True, True]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [node.stopped_by for node in (first, second)] == ["SIGHUP on b"] * 2
    for node in (second, first):
        node.shutdown()


@pytest.mark.slow
def test_nodes_that_leave_a_finished_job_ask_nobody_for_a_new_round() -> None:
    """One that is slow to look finds both messages at once: all have finished, and the job is closed."""
    from launcher.rendezvous.plan_ordered import PlanOrdered

    hosts, port = ("a", "b"), free_port()
    first, second = (PlanOrdered(config(node, hosts, port)) for node in (0, 1))
    all_enter(first, second)
    assert not first.all_finished()
    deadline = time.monotonic() + 60
    while not second.all_finished():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    second.shutdown()
    while not first.is_closed():
        assert first.num_nodes_waiting() == 0 and time.monotonic() < deadline
        time.sleep(0.01)
    assert first.num_nodes_waiting() == 0 and first.all_finished()
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
@pytest.mark.parametrize(("host", "secret"), [("127.0.0.1", "hush"), ("::1", "")])
def test_plain_torchrun_keeps_the_plans_order_with_our_rendezvous(tmp_path: Path, host: str, secret: str) -> None:
    script, hosts, port = tmp_path / "order.py", ("node2", "node10", "NODE1"), free_port(host)
    script.write_text(ORDER_SCRIPT)
    agents = []
    variables = {**os.environ, SECRET: secret}
    for node in (2, 0, 1):
        command = [
            sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=launcher", "--rdzv-id=order",
            f"--rdzv-endpoint={endpoint(host, port)}", "--nnodes=3", "--nproc-per-node=1",
            f"--rdzv-conf=hosts={'+'.join(hosts)},host={hosts[node]}", str(script), hosts[node],
        ]  # fmt: skip
        agents.append(
            preloaded.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)
        )
    said = [agent.communicate(timeout=240) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0, 0], said
    for node, (out, err) in zip((2, 0, 1), said, strict=True):
        assert ("LAUNCHER_SECRET is not set" in err) == (node == 0 and not secret)
        assert re.findall(r"order (\d) (.*)", out) == [(str(node), " ".join(hosts))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("conf", "reported"),
    [
        (["--rdzv-conf=host=x"], "order of the nodes is not known"),
        (["--rdzv-conf=hosts=a+b+c"], "give --nnodes=3"),
    ],
)
def test_torchrun_without_an_order_says_what_is_missing(tmp_path: Path, conf: list[str], reported: str) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=launcher", "--rdzv-id=x",
        "--rdzv-endpoint=127.0.0.1:1", "--nnodes=2", *conf, str(tmp_path / "none.py"),
    ]  # fmt: skip
    done = preloaded.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode != 0
    assert reported in done.stderr


def test_a_store_is_opened_with_libuv_and_without_where_torch_or_its_user_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def without_libuv(*words: Any, **options: Any) -> Any:
        if options["use_libuv"]:  # in the words of a build without it, whose client needs none
            raise DistStoreError("use_libuv was requested but PyTorch was built without libuv support, …")
        return TCPStore(*words, **options)

    monkeypatch.delenv("USE_LIBUV", raising=False)
    stores = [store.open_store("127.0.0.1")]
    monkeypatch.setenv("USE_LIBUV", "0")
    stores.append(store.open_store("127.0.0.1"))
    monkeypatch.delenv("USE_LIBUV")
    with monkeypatch.context() as patch:
        patch.setattr(store, "TCPStore", without_libuv)
        stores.append(store.open_store("127.0.0.1"))
    with monkeypatch.context() as patch:
        patch.setattr(store.torch, "__version__", "2.7.1+cu126")
        stores.append(store.open_store("127.0.0.1"))
    assert [server.libuvBackend for server, _ in stores] == [True, False, False, False]
    for server, port in stores:
        server.set("rank", "0")
        assert store.join_store("127.0.0.1", port).get("rank") == b"0"
