"""Jobs over several simulated nodes: the plan's order, and its return after every kind of loss."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nodes import HERE, Nodes

from launcher.planner import read_plan
from launcher.run.folder import RunFolder, create_run_folder
from launcher.run.node_state import node_states
from launcher.run.owner import cancelled_since_claim, claim, mark_cancelled, this_process

pytestmark = pytest.mark.slow
HANGS = HERE / "hang_script.py"
HOSTS = ("node2", "node10", "NODE1")  # sorted by name they would be NODE1, node10, node2


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Callable[..., Nodes]]:
    made: list[Nodes] = []

    def make(*args: str, **options: Any) -> Nodes:
        made.append(Nodes(tmp_path, args=args, **options))
        return made[-1]

    yield make
    for job in made:
        job.kill_all()


def test_order_holds_from_arrival_through_loss_of_rank_agent_and_coordinator(
    nodes: Callable[..., Nodes], tmp_path: Path
) -> None:
    end = tmp_path / "end"
    job = nodes(f"until={end}", hosts=HOSTS, ranks=2, launch={"max_restarts": 20, "start": "fork"})
    for name in reversed(HOSTS):
        job.start(name)
    assert job.wait_for_steps(), job.reported(HOSTS[0])
    expected = [(rank // 2, rank) for rank in range(6)]
    assert [starts[-1] for starts in job.begun()] == expected

    for victim in ("rank", "agent", "coordinator"):
        saved = job.saved
        name = HOSTS[0] if victim == "coordinator" else HOSTS[1]
        os.kill(job.ranks_of(name)[1] if victim == "rank" else job.agents[name].pid, signal.SIGKILL)
        if victim != "rank":
            job.agents[name].wait()
            job.start(name)
        assert job.wait_for_steps(), (victim, [job.reported(h)[-2000:] for h in HOSTS])
        assert [starts[-1] for starts in job.begun()] == expected, victim
        assert job.saved > saved

    members = job.members()
    end.touch()
    assert set(job.finish().values()) == {0}, [job.reported(h)[-2000:] for h in HOSTS]
    assert not [pid for pid in members if Path(f"/proc/{pid}").exists()]


def test_a_spare_takes_the_rank_of_a_lost_node(nodes: Callable[..., Nodes], tmp_path: Path) -> None:
    end = tmp_path / "end"
    job = nodes(f"until={end}", hosts=HOSTS, launch={"max_restarts": 5, "spare_wait_s": 0.2})
    for name in HOSTS:
        job.start(name)
    assert job.wait_for_steps()
    job.start("spare")  # after the first round: with so short a wait it would sit down before a slow node comes
    assert [starts[-1] for starts in job.begun()] == [(0, 0), (1, 1), (2, 2)]
    job.agents.pop(HOSTS[1]).kill()
    assert job.wait_for(lambda: len(job.begun()[1]) == 2), job.reported("spare")
    assert job.wait_for_steps()
    assert [starts[-1] for starts in job.begun()] == [(0, 0), (1, 1), (2, 2)]
    end.touch()
    assert set(job.finish().values()) == {0}


def test_agents_meet_over_ipv6_and_no_rank_gets_the_jobs_secret(nodes: Callable[..., Nodes], tmp_path: Path) -> None:
    end = tmp_path / "end"
    job = nodes(f"until={end}", hosts=HOSTS, ranks=2, host="::1")
    for name in HOSTS:
        job.start(name)
    assert job.wait_for_steps(), job.reported(HOSTS[0])
    assert all("store at ::1, secret None" in job.log(rank) for rank in range(6))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and job.secret in path.read_text()]
    assert not [pid for pid in job.members() if job.secret in Path(f"/proc/{pid}/cmdline").read_text()]
    end.touch()
    assert set(job.finish().values()) == {0}


def test_a_slow_rank_of_another_node_is_named_by_the_first(nodes: Callable[..., Nodes], tmp_path: Path) -> None:
    end = tmp_path / "end"
    job = nodes("slow=2", f"until={end}", "step_s=0.1", hosts=HOSTS, launch={"straggler_steps": 5})
    for name in HOSTS:
        job.start(name)
    assert job.wait_for(lambda: "is slow" in job.reported("node2"))
    named_at = job.saved
    assert job.wait_for(lambda: job.saved >= named_at + 5)
    end.touch()
    assert set(job.finish().values()) == {0}
    assert "rank 2 (node 2, NODE1) is slow" in job.reported("node2")
    assert not [name for name in HOSTS[1:] if "is slow" in job.reported(name)]


def test_missing_nodes_are_named_when_the_wait_is_over(nodes: Callable[..., Nodes]) -> None:
    job = nodes(hosts=HOSTS, launch={"join_timeout_s": 3.0})
    job.start("node2")
    assert job.finish() == {"node2": 1}
    assert "node10 (node 1), NODE1 (node 2)" in job.reported("node2")
    assert "Traceback" not in job.reported("node2")


def test_a_node_without_its_coordinator_says_whom_it_waited_for(nodes: Callable[..., Nodes]) -> None:
    job = nodes(hosts=HOSTS, launch={"join_timeout_s": 1.0})
    job.start("node10")
    assert job.finish() == {"node10": 1}
    assert f"cannot reach the coordinator 127.0.0.1:{job.port}" in job.reported("node10")


def test_a_failure_without_restarts_ends_every_node_with_the_reason(nodes: Callable[..., Nodes]) -> None:
    job = nodes(hosts=HOSTS[:2])
    for name in HOSTS[:2]:
        job.start(name)
    assert job.wait_for_steps()
    os.kill(job.ranks_of("node10")[0], signal.SIGKILL)
    assert set(job.finish().values()) == {1}
    assert "rank 1 failed first" in job.reported("node10")


def test_a_stop_that_one_agent_is_asked_for_is_a_stop_of_all_and_a_late_agent_of_a_complete_job_ends(
    nodes: Callable[..., Nodes], tmp_path: Path
) -> None:
    end, hosts = tmp_path / "end", HOSTS[:2]
    job = nodes(f"until={end}", hosts=hosts)
    for name in hosts:
        job.start(name)
    assert job.wait_for_steps(), job.reported(hosts[0])
    job.agents["node10"].send_signal(signal.SIGINT)
    assert set(job.finish().values()) == {1}, [job.reported(h)[-2000:] for h in hosts]
    assert "stopped by SIGINT after step" in job.reported("node10")
    assert "stopped by SIGINT on node10 after step" in job.reported("node2")
    assert [state.state for state in node_states(RunFolder(job.run_dir))] == ["stopped", "stopped"]

    end.touch()
    for name in hosts:
        job.start(name)
    assert set(job.finish().values()) == {0}, [job.reported(h)[-2000:] for h in hosts]
    job.start("node10")
    assert job.finish()["node10"] == 0
    assert "the job is complete, says" in job.reported("node10")


def test_an_agent_that_comes_back_to_a_cancelled_job_ends_at_once(nodes: Callable[..., Nodes]) -> None:
    job = nodes(hosts=HOSTS[:2], launch={"join_timeout_s": 1000.0})  # longer than the test waits
    folder = create_run_folder(job.run_dir)
    claim(folder, this_process())
    mark_cancelled(folder, this_process())
    job.start("node10")
    assert job.finish() == {"node10": 1}
    assert "`launcher cancel` has ended the job" in job.reported("node10")
    claim(folder, this_process())  # a new start
    assert not cancelled_since_claim(folder)


def test_lost_nodes_shrink_the_data_parallel_axis_until_they_come_back(
    nodes: Callable[..., Nodes], tmp_path: Path
) -> None:
    end = tmp_path / "end"
    launch = {"max_restarts": 5, "shrink_to": 1, "last_call_s": 2.0}
    job = nodes(f"until={end}", hosts=HOSTS[:2], ranks=2, launch=launch)
    for name in HOSTS[:2]:
        job.start(name)
    assert job.wait_for(lambda: "dp=4" in job.log(0)), job.reported(HOSTS[0])
    assert job.wait_for_steps()
    job.agents[HOSTS[1]].kill()
    job.agents[HOSTS[1]].wait()
    assert job.wait_for(lambda: "dp=2" in job.log(1)), job.reported(HOSTS[0])
    assert job.wait_for_steps()
    assert "going on without node 1: tp1 pp1 dp4" in job.reported(HOSTS[0])
    smaller = read_plan(next(job.run_dir.glob("plan-round-*.json")))
    assert (smaller.layout.dp, smaller.hosts, smaller.job.cluster.num_nodes) == (2, HOSTS[:1], 1)
    job.start(HOSTS[1])
    assert job.wait_for(lambda: job.log(3).count("dp=4") == 2), job.reported(HOSTS[0])
    assert job.wait_for_steps()
    end.touch()
    assert set(job.finish().values()) == {0}


def test_a_node_that_waits_for_a_busy_one_does_not_hang(nodes: Callable[..., Nodes], tmp_path: Path) -> None:
    end = tmp_path / "end"
    launch = {"silence_timeout_s": 3, "start_timeout_s": None}
    job = nodes("busy=1", f"end={end}", hosts=HOSTS[:2], launch=launch, script=HANGS)
    for name in HOSTS[:2]:
        job.start(name)
    assert job.wait_for(lambda: all("begins" in job.log(rank) for rank in range(2))), job.reported(HOSTS[0])
    time.sleep(5)
    assert [agent.poll() for agent in job.agents.values()] == [None, None]
    end.touch()
    assert set(job.finish().values()) == {0}


def test_a_job_whose_nodes_are_all_silent_hangs(nodes: Callable[..., Nodes]) -> None:
    launch = {"silence_timeout_s": 10, "start_timeout_s": None}
    job = nodes("stuck=1", hosts=HOSTS[:2], launch=launch, script=HANGS)
    for name in HOSTS[:2]:
        job.start(name)
    assert set(job.finish().values()) == {1}
    said = job.reported(HOSTS[0]) + job.reported(HOSTS[1])
    assert "no rank has printed anything, used a core or finished a step" in said
    assert "rank 1 (step 0): hang_script.py:load_data" in job.reported(HOSTS[1])
    assert "init_process_group" in job.reported(HOSTS[0])
