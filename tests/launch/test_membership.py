"""The rules of the rendezvous, as laws over arrivals, losses and returns."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.rendezvous.membership import MOST_SPARES, Membership, Outgoing
from launcher.rendezvous.messages import Join


def join(
    membership: Membership, connection: int, node: int | None, *, host: str | None = None, now: float = 0.0
) -> Outgoing:
    return membership.join(connection, Join(node, host or f"host{node}"), now=now)


def ranks(outgoing: Outgoing) -> dict[int, int]:
    """Connection → rank of the round that begins."""
    return {connection: message["go"]["rank"] for connection, message in outgoing if "go" in message}


def kinds(outgoing: Outgoing) -> list[tuple[int, str]]:
    return [(connection, next(iter(message))) for connection, message in outgoing]


@settings(deadline=None)
@given(st.permutations(range(7)))
def test_any_order_of_arrival_gives_the_plans_order(arrival: list[int]) -> None:
    membership = Membership(num_nodes=7)
    outgoing: Outgoing = []
    for connection, node in enumerate(arrival):
        assert not ranks(outgoing)
        outgoing = join(membership, connection, node)
    assert ranks(outgoing) == dict(enumerate(arrival))
    assert {message["go"]["world"] for _, message in outgoing} == {7}


@settings(deadline=None)
@given(st.data(), st.integers(2, 6))
def test_order_survives_any_losses_and_returns(data: st.DataObject, nodes: int) -> None:
    membership = Membership(num_nodes=nodes)
    here = {node: node for node in range(nodes)}  # node → connection
    for node in range(nodes):
        outgoing = join(membership, node, node)
    next_connection = nodes
    for _ in range(data.draw(st.integers(1, 5))):
        gone = data.draw(st.sets(st.integers(0, nodes - 1), min_size=1))
        for node in gone:
            membership.lost(here[node], now=0.0)
        back = data.draw(st.permutations(range(nodes)))
        for node in back:
            if node in gone:
                here[node], next_connection = next_connection, next_connection + 1
            outgoing = join(membership, here[node], node)
        assert ranks(outgoing) == {connection: node for node, connection in here.items()}


def begun(nodes: int, **options: Any) -> Membership:
    membership = Membership(num_nodes=nodes, **options)
    for node in range(nodes):
        join(membership, node, node)
    return membership


def test_a_lost_node_calls_the_others_in_once() -> None:
    membership = begun(4)
    assert sorted(kinds(membership.lost(2, now=1.0))) == [(0, "waiting"), (1, "waiting"), (3, "waiting")]
    assert membership.lost(1, now=1.0) == []
    assert membership.missing(0) == ["node 0", "node 1", "node 2", "node 3"]


def test_a_node_that_joins_again_calls_the_others_in() -> None:
    membership = begun(3)
    assert kinds(join(membership, 1, 1)) == [(0, "waiting"), (2, "waiting")]
    assert kinds(join(membership, 0, 0)) == []
    assert ranks(join(membership, 2, 2)) == {0: 0, 1: 1, 2: 2}
    assert membership.round == 2


def test_a_node_that_leaves_with_a_word_calls_nobody() -> None:
    membership = begun(3)
    assert membership.leave(1) == []
    assert membership.lost(1, now=1.0) == []


def test_nodes_are_finished_together() -> None:
    membership = begun(3)
    assert membership.done(0) == []
    assert membership.done(2) == []
    assert sorted(kinds(membership.done(1))) == [(0, "finished"), (1, "finished"), (2, "finished")]


def test_all_nodes_learn_that_one_was_asked_to_stop_before_the_end() -> None:
    membership = begun(2)
    assert membership.stop(1, "SIGINT on b") == []
    membership.done(1)
    assert [message["stopped_by"] for _, message in membership.done(0)] == ["SIGINT on b"] * 2
    membership.lost(1, now=1.0)  # and what it was asked goes with it
    join(membership, 0, 0)
    join(membership, 2, 1)
    membership.done(0)
    assert [message["stopped_by"] for _, message in membership.done(2)] == ["", ""]


def test_a_finished_node_is_called_in_when_another_fails() -> None:
    membership = begun(3)
    membership.done(0)
    assert sorted(kinds(membership.lost(2, now=1.0))) == [(0, "waiting"), (1, "waiting")]
    for connection, node in ((0, 0), (1, 1)):
        join(membership, connection, node)
    assert ranks(join(membership, 5, 2)) == {0: 0, 1: 1, 5: 2}
    assert membership.done(1) == []


def test_a_place_that_is_taken_cannot_be_taken_by_another() -> None:
    membership = begun(2)
    assert join(membership, 9, 1) == []
    assert membership.missing(9) == ["the place of node 1, which another agent holds (node 1)"]
    assert membership.close(9, "the newcomer says so") == []
    assert sorted(kinds(membership.done(0) + membership.done(1))) == [(0, "finished"), (1, "finished")]


def test_a_restarted_agent_takes_its_place_back_when_its_predecessors_connection_ends() -> None:
    membership = begun(2, hosts=("host0", "host1"), spare_wait_s=1000.0)
    assert join(membership, 8, 1, host="impostor") == []
    assert join(membership, 9, 1) == []
    assert kinds(membership.lost(1, now=1.0)) == [(0, "waiting")]
    assert ranks(join(membership, 0, 0, now=1.0)) == {0: 0, 9: 1}


def test_more_agents_than_a_job_can_use_are_refused() -> None:
    membership = begun(2)
    answers = [join(membership, 100 + number, None, host="spare") for number in range(MOST_SPARES + 3)]
    assert answers[:-1] == [[]] * (MOST_SPARES + 2)
    assert kinds(answers[-1]) == [(100 + MOST_SPARES + 2, "refused")]


def test_a_second_host_for_one_node_waits_as_a_spare() -> None:
    membership = begun(2)
    assert join(membership, 9, 1, host="impostor") == []
    assert kinds(membership.lost(1, now=1.0)) == [(0, "waiting")]
    assert join(membership, 0, 0, now=2.0) == []
    assert ranks(membership.tick(now=13.0)) == {0: 0, 9: 1}


def test_a_spare_takes_the_place_of_a_lost_node_after_a_wait_and_keeps_it() -> None:
    membership = begun(3, spare_wait_s=10.0)
    assert join(membership, 7, None, host="spare", now=1.0) == []
    membership.lost(1, now=5.0)
    for node in (0, 2):
        assert not ranks(join(membership, node, node, now=6.0))
    assert membership.tick(now=15.0) == []
    assert ranks(membership.tick(now=16.1)) == {0: 0, 7: 1, 2: 2}
    assert join(membership, 8, 1, host="host1", now=20.0) == []  # too late: now it is the spare


def test_fewer_nodes_begin_after_the_last_call_in_the_plans_order() -> None:
    membership = Membership(num_nodes=4, min_nodes=2, last_call_s=5.0)
    for connection, node in ((0, 3), (1, 1)):
        assert not ranks(join(membership, connection, node))
    assert membership.tick(now=4.9) == []
    assert ranks(membership.tick(now=5.0)) == {1: 0, 0: 1}


def test_missing_nodes_are_named() -> None:
    membership = Membership(num_nodes=3, hosts=("node2", "node10", "NODE1"))
    join(membership, 0, 1)
    assert membership.missing(0) == ["node2 (node 0)", "NODE1 (node 2)"]
    many = Membership(num_nodes=2000)
    assert len(many.missing(0)) == 21
    assert many.missing(0)[-1] == "and 1980 more"


def test_a_closed_job_admits_nobody_and_says_why() -> None:
    membership = begun(2)
    closed = {"closed": "rank 3 failed"}
    assert membership.close(1, "rank 3 failed") == [(0, closed), (1, closed)]
    assert join(membership, 5, 0) == [(5, {"closed": "rank 3 failed"})]


def test_a_spare_cannot_close_the_job() -> None:
    membership = begun(2)
    join(membership, 7, None, host="spare")
    assert membership.close(7, "the spare was ended") == []
    assert not membership.closed


@pytest.mark.parametrize("node", [-1, 2, 99])
def test_a_node_outside_the_plan_is_refused(node: int) -> None:
    outgoing = join(Membership(num_nodes=2), 0, node)
    assert kinds(outgoing) == [(0, "refused")]
    assert "0 to 1" in outgoing[0][1]["refused"]


def test_rounds_go_on_counting_with_a_new_coordinator() -> None:
    membership = Membership(num_nodes=1)
    outgoing = membership.join(0, Join(0, "a", round=41), now=0.0)
    assert outgoing[0][1]["go"]["round"] == 42
