"""The rules of the rendezvous, as laws over arrivals, losses and returns."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.rendezvous.membership import Membership, Outgoing


def join(
    roster: Membership, connection: int, node: int | None, *, host: str | None = None, now: float = 0.0
) -> Outgoing:
    name = host or f"host{node}"
    return roster.join(
        connection,
        {"node": node, "host": name, "address": f"10.0.0.{connection}", "port": 1000 + connection, "round": 0},
        now=now,
    )


def ranks(outgoing: Outgoing) -> dict[int, int]:
    """Connection → rank of the round that begins."""
    return {connection: message["go"]["rank"] for connection, message in outgoing if "go" in message}


def kinds(outgoing: Outgoing) -> list[tuple[int, str]]:
    return [(connection, next(iter(message))) for connection, message in outgoing]


@settings(deadline=None)
@given(st.permutations(range(7)))
def test_any_order_of_arrival_gives_the_plans_order(arrival: list[int]) -> None:
    roster = Membership(num_nodes=7)
    outgoing: Outgoing = []
    for connection, node in enumerate(arrival):
        assert not ranks(outgoing)
        outgoing = join(roster, connection, node)
    assert ranks(outgoing) == dict(enumerate(arrival))
    first = arrival.index(0)
    for _, message in outgoing:
        assert message["go"]["address"] == f"10.0.0.{first}"
        assert message["go"]["port"] == 1000 + first
        assert message["go"]["world"] == 7


@settings(deadline=None)
@given(st.data(), st.integers(2, 6))
def test_order_survives_any_losses_and_returns(data: st.DataObject, nodes: int) -> None:
    roster = Membership(num_nodes=nodes)
    here = {node: node for node in range(nodes)}  # node → connection
    for node in range(nodes):
        outgoing = join(roster, node, node)
    next_connection = nodes
    for _ in range(data.draw(st.integers(1, 5))):
        gone = data.draw(st.sets(st.integers(0, nodes - 1), min_size=1))
        for node in gone:
            roster.lost(here[node], now=0.0)
        back = data.draw(st.permutations(range(nodes)))
        for node in back:
            if node in gone:
                here[node], next_connection = next_connection, next_connection + 1
            outgoing = join(roster, here[node], node)
        assert ranks(outgoing) == {connection: node for node, connection in here.items()}


def begun(nodes: int, **options: Any) -> Membership:
    roster = Membership(num_nodes=nodes, **options)
    for node in range(nodes):
        join(roster, node, node)
    return roster


def test_a_lost_node_calls_the_others_in_once() -> None:
    roster = begun(4)
    assert sorted(kinds(roster.lost(2, now=1.0))) == [(0, "waiting"), (1, "waiting"), (3, "waiting")]
    assert roster.lost(1, now=1.0) == []
    assert roster.missing() == ["node 0", "node 1", "node 2", "node 3"]


def test_a_node_that_joins_again_calls_the_others_in() -> None:
    roster = begun(3)
    assert kinds(join(roster, 1, 1)) == [(0, "waiting"), (2, "waiting")]
    assert kinds(join(roster, 0, 0)) == []
    assert ranks(join(roster, 2, 2)) == {0: 0, 1: 1, 2: 2}
    assert roster.round == 2


def test_a_node_that_leaves_with_a_word_calls_nobody() -> None:
    roster = begun(3)
    assert roster.leave(1) == []
    assert roster.lost(1, now=1.0) == []


def test_nodes_are_finished_together() -> None:
    roster = begun(3)
    assert roster.done(0) == []
    assert roster.done(2) == []
    assert sorted(kinds(roster.done(1))) == [(0, "finished"), (1, "finished"), (2, "finished")]


def test_a_finished_node_is_called_in_when_another_fails() -> None:
    roster = begun(3)
    roster.done(0)
    assert sorted(kinds(roster.lost(2, now=1.0))) == [(0, "waiting"), (1, "waiting")]
    for connection, node in ((0, 0), (1, 1)):
        join(roster, connection, node)
    assert ranks(join(roster, 5, 2)) == {0: 0, 1: 1, 5: 2}
    assert roster.done(1) == []


def test_a_restarted_agent_replaces_its_ghost() -> None:
    roster = begun(2)
    outgoing = join(roster, 9, 1)
    assert (1, "refused") in kinds(outgoing)
    assert (0, "waiting") in kinds(outgoing)
    assert ranks(join(roster, 0, 0)) == {0: 0, 9: 1}


def test_a_second_host_for_one_node_waits_as_a_spare() -> None:
    roster = begun(2)
    assert join(roster, 9, 1, host="impostor") == []
    assert kinds(roster.lost(1, now=1.0)) == [(0, "waiting")]
    assert join(roster, 0, 0, now=2.0) == []
    assert ranks(roster.tick(now=13.0)) == {0: 0, 9: 1}


def test_a_spare_takes_the_place_of_a_lost_node_after_a_wait_and_keeps_it() -> None:
    roster = begun(3, spare_wait_s=10.0)
    assert join(roster, 7, None, host="spare", now=1.0) == []
    roster.lost(1, now=5.0)
    for node in (0, 2):
        assert not ranks(join(roster, node, node, now=6.0))
    assert roster.tick(now=15.0) == []
    assert ranks(roster.tick(now=16.1)) == {0: 0, 7: 1, 2: 2}
    assert join(roster, 8, 1, host="host1", now=20.0) == []  # too late: now it is the spare


def test_fewer_nodes_begin_after_the_last_call_in_the_plans_order() -> None:
    roster = Membership(num_nodes=4, min_nodes=2, last_call_s=5.0)
    for connection, node in ((0, 3), (1, 1)):
        assert not ranks(join(roster, connection, node))
    assert roster.tick(now=4.9) == []
    assert ranks(roster.tick(now=5.0)) == {1: 0, 0: 1}


def test_missing_nodes_are_named() -> None:
    roster = Membership(num_nodes=3, hosts=("node2", "node10", "NODE1"))
    join(roster, 0, 1)
    assert roster.missing() == ["node2 (node 0)", "NODE1 (node 2)"]
    many = Membership(num_nodes=2000)
    assert len(many.missing()) == 21
    assert many.missing()[-1] == "and 1980 more"


def test_a_closed_job_admits_nobody_and_says_why() -> None:
    roster = begun(2)
    closed = {"closed": "rank 3 failed"}
    assert roster.close(1, "rank 3 failed") == [(0, closed), (1, closed)]
    assert join(roster, 5, 0) == [(5, {"closed": "rank 3 failed"})]


def test_neither_a_spare_nor_a_replaced_agent_can_close_the_job() -> None:
    roster = begun(2)
    join(roster, 7, None, host="spare")
    join(roster, 9, 1)
    assert roster.close(7, "the spare was ended") == []
    assert roster.close(1, "the ghost of node 1 was refused") == []
    assert ranks(join(roster, 0, 0)) == {0: 0, 9: 1}


@pytest.mark.parametrize("node", [-1, 2, 99])
def test_a_node_outside_the_plan_is_refused(node: int) -> None:
    outgoing = join(Membership(num_nodes=2), 0, node)
    assert kinds(outgoing) == [(0, "refused")]
    assert "0 to 1" in outgoing[0][1]["refused"]


def test_rounds_go_on_counting_with_a_new_coordinator() -> None:
    roster = Membership(num_nodes=1)
    outgoing = roster.join(0, {"node": 0, "host": "a", "address": "1", "port": 1, "round": 41}, now=0.0)
    assert outgoing[0][1]["go"]["round"] == 42
