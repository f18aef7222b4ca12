"""Simulated nodes for tests and benchmarks: agents on loopback addresses, started, killed and started again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import preloaded
from ports import free_port

from launcher import process
from launcher.planner import Plan, write_plan
from launcher.rendezvous.authentication import SECRET, new_secret
from launcher.run.folder import RunFolder, create_run_folder
from launcher.run.node_state import node_states

HERE = Path(__file__).parent


@dataclass
class Nodes:
    """A job over simulated nodes, and everything that it started."""

    folder: Path
    hosts: tuple[str, ...]
    ranks: int = 1
    launch: Mapping[str, Any] = field(default_factory=dict)
    args: tuple[str, ...] = ()
    script: Path = HERE / "step_script.py"
    plan: Plan | None = None  # of what the script is to train; None: one made for step_script.py
    agents: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    host: str = "127.0.0.1"  # where the coordinator listens
    secret: str = field(default_factory=new_secret)
    port: int = field(default_factory=lambda: free_port())

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    def __post_init__(self) -> None:
        if self.plan:
            write_plan(self.plan, create_run_folder(self.run_dir).plan)

    @property
    def saved(self) -> int:
        """The newest finished step."""
        path = self.folder / "step"
        return int(path.read_text()) if path.exists() else 0

    def start(self, name: str) -> None:
        options = {
            "hosts": self.hosts, "name": name, "host": self.host, "port": self.port, "ranks": self.ranks,
            "launch": self.launch, "planned": self.plan is not None,
        }  # fmt: skip
        command = [sys.executable, HERE / "node_driver.py", self.run_dir, self.script, json.dumps(options)]
        with (self.folder / f"agent-{name}.log").open("a") as log:
            self.agents[name] = preloaded.Popen(
                [*map(str, command), f"dir={self.folder}", *self.args], stdout=log, stderr=log, text=True,
                env={**os.environ, SECRET: self.secret},
            )  # fmt: skip

    def log(self, rank: int) -> str:
        path = self.run_dir / "logs" / f"rank-{rank}.log"
        return path.read_text() if path.exists() else ""

    def reported(self, name: str) -> str:
        return (self.folder / f"agent-{name}.log").read_text()

    def begun(self) -> list[list[tuple[int, int]]]:
        """For each rank, the (node, rank) that each of its starts reported, in order."""
        found = []
        for rank in range(self.ranks * len(self.hosts)):
            starts = re.findall(r"node (\d+) rank (\d+) restart", self.log(rank))
            found.append([(int(node), int(number)) for node, number in starts])
        return found

    def ranks_of(self, name: str) -> list[int]:
        """The processes of a node's ranks in order, as its agent wrote them down, but for those that are gone.

        Numbers of processes wrap around, and so say no order.
        """
        agent = self.agents[name].pid
        there = set(process.descendants(agent))
        states = [state for state in node_states(RunFolder(self.run_dir)) if state.pid == agent]
        return [pid for state in states for _, pid in sorted(state.ranks.items()) if pid in there]

    def members(self) -> list[int]:
        return [pid for agent in self.agents.values() for pid in [agent.pid, *process.descendants(agent.pid)]]

    def wait_for(self, condition: Callable[[], bool], *, timeout_s: float = 240.0) -> bool:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def wait_for_steps(self, more: int = 3, *, timeout_s: float = 240.0) -> bool:
        """Wait until this number of further steps is finished."""
        goal = self.saved + more
        return self.wait_for(lambda: self.saved >= goal, timeout_s=timeout_s)

    def finish(self, *, timeout_s: float = 240.0) -> dict[str, int]:
        """Exit codes of the agents that still run."""
        return {name: agent.wait(timeout_s) for name, agent in self.agents.items()}

    def kill_all(self) -> None:
        members = self.members()
        process.signal_all(members, signal.SIGCONT)
        process.signal_all(members, signal.SIGKILL)
        for agent in self.agents.values():
            agent.wait()
