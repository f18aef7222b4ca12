"""The secret of a start, on its way from the batch job's driver to the agents of all nodes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from plans import plan

from launcher import env
from launcher.agent.launch import Launch
from launcher.agent.settings import LaunchSettings
from launcher.errors import InputError
from launcher.rendezvous.authentication import SECRET
from launcher.slurm import nodecheck
from launcher.slurm.node import coordinator, take_secret
from launcher.slurm.nodecheck import Steps
from launcher.slurm.settings import SlurmSettings
from launcher.slurm.step import AGENT

HOSTS = ("node2", "node10", "node1", "node9")


def steps() -> Steps:
    return Steps(Path("run"), SlurmSettings(), Launch(settings=LaunchSettings(), work_dir=Path("/work")), HOSTS, "17-0")


@pytest.fixture(autouse=True)
def without_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodecheck, "node_address", lambda host: f"address of {host}")


def test_each_start_has_a_secret_of_its_own_in_the_environment_and_nowhere_else() -> None:
    job, one, other = replace(plan(), hosts=HOSTS), steps(), steps()
    secret = one.variables(job)[SECRET]
    assert len(secret) == 64
    assert one.variables(job)[SECRET] == secret  # the preflight's, the measurement's and the agents'
    assert replace(one, run_id="17-0-bandwidth").variables(job)[SECRET] == secret
    assert other.variables(job)[SECRET] != secret
    assert secret not in repr(one)
    assert secret not in " ".join(one.argv(job, AGENT, HOSTS))


def test_an_agent_takes_the_secret_out_of_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET, "hush")
    assert take_secret("node2", num_nodes=4) == "hush"
    assert env.get(SECRET) is None
    assert take_secret("node2", num_nodes=1) == ""
    with pytest.raises(InputError, match=r"LAUNCHER_SECRET did not reach the agent on node2"):
        take_secret("node2", num_nodes=4)


@pytest.mark.parametrize(
    ("given", "host", "port"), [("n1:29400", "n1", 29400), ("[::1]:29400", "::1", 29400), ("::1", "::1", None)]
)
def test_the_coordinators_endpoint_may_be_an_ipv6_address(given: str, host: str, port: int | None) -> None:
    assert coordinator(LaunchSettings.from_config({"coordinator": given})) == (host, port)
