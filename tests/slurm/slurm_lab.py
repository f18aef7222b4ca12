"""A real Slurm for the tests: slurm/testcluster, stopped by pid at the end, and what is read of its jobs.

A module of its own and no conftest.py: every folder of tests may have one of that name, and only one can be imported.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import preloaded
import pytest

ROOT = Path(__file__).parents[2]
TESTCLUSTER = ROOT / "slurm" / "testcluster"
STEPPER = Path(__file__).parent / "stepper.py"
# Slurm's order (node1, node2, node9, node10) alternates between the leaves; by string node10 comes before node2.
# Jobs of the tests get these four; SIDE and NEWER must be asked for. On SIDE are jobs that run while other tests do.
NODES = ("node1", "node2", "node9", "node10")
SIDE, NEWER = "side1,side2,side3", "new1,new2"
LEAVES = ("node10,node2", "node1,node9", SIDE, NEWER)
ACCOUNTING = all(shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in ("mariadbd", "slurmdbd"))
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
NEEDED = ("munged", "slurmctld", "slurmd", "srun", "unshare")
POLL_S = 0.2
PYTHON = sys.executable
# What the gpt recipe trains in tests, and the options of one rank of it.
SMALL = ("train.steps=3", "model.layers=2", "model.seq_len=64", "train.global_batch=8")
ONE_RANK = (
    "cluster=cpu",
    "cluster.node.num_gpus=1",
    "layout.tp=1",
    "layout.pp=1",
    "layout.dp=1",
    "layout.micro_batch=2",
)
PREFIX = "launcher-lab-"
LOCK = Path(tempfile.gettempdir()) / "launcher-slurm-tests.lock"


Done = subprocess.CompletedProcess[str]


class Slurm:
    """The test cluster, and what a person types on its login node."""

    def __init__(self, folder: Path, runs: Path) -> None:
        self.folder, self.runs = folder, runs
        conf = str(folder / "etc" / "slurm.conf")
        self.environment = {**os.environ, "PATH": PATH, "SLURM_CONF": conf, "OMP_NUM_THREADS": "1"}

    def run(self, *argv: str, check: bool = True, **environment: str) -> Done:
        return self._run(subprocess.run, argv, check=check, **environment)

    def launcher(self, *words: str, check: bool = True, **environment: str) -> Done:
        """In a fork of a preloaded interpreter, unless another one is asked for."""
        argv = (sys.executable, "-m", "launcher.cli", *words)
        another = sys.executable != PYTHON or any(name.startswith("PYTHON") for name in environment)
        return self._run(subprocess.run if another else preloaded.run, argv, check=check, **environment)

    def _run(self, run: Callable[..., Done], argv: Sequence[str], *, check: bool, **environment: str) -> Done:
        variables = {**self.environment, **environment}
        done = run(list(argv), env=variables, capture_output=True, text=True, timeout=300, cwd=self.runs)
        assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done

    def submit(self, run: Path, *words: str, args: Sequence[str] = (), **environment: str) -> str:
        """`launcher submit` on the test cluster; returns the job id."""
        chosen = any(word.startswith(("launch.nodelist=", "launch.exclude=")) for word in words)
        elsewhere = [] if chosen else [f"launch.exclude={SIDE},{NEWER}"]
        overrides = ["cluster=testcluster", f"run_dir={run}", *elsewhere, *words]
        rest = ["--", *args] if args else []
        return self.launcher("submit", *overrides, *rest, **environment).stdout.strip()

    def submit_steps(self, run: Path, *words: str, nodes: int, args: Sequence[str]) -> str:
        """A stepper over `nodes` nodes of one rank."""
        shape = [f"cluster.num_nodes={nodes}", "cluster.node.num_gpus=1", "cluster.node.domain_size=1"]
        layout = ["layout.tp=1", "layout.pp=1", f"layout.dp={nodes}"]
        return self.submit(run, f"script={STEPPER}", *shape, *layout, *words, args=args)

    def state(self, job_id: str) -> str:
        return self.run("squeue", "-h", "-t", "all", "-j", job_id, "-o", "%T").stdout.strip()

    def wait(self, job_id: str, *states: str, timeout_s: float = 300) -> None:
        deadline = time.monotonic() + timeout_s
        while (state := self.state(job_id)) not in states:
            if time.monotonic() > deadline or state in {"FAILED", "CANCELLED", "TIMEOUT", "COMPLETED", "NODE_FAIL"}:
                raise AssertionError(f"job {job_id} is {state}, not {states}:\n{self.logs()}")
            time.sleep(POLL_S)

    def logs(self) -> str:
        return "\n".join(f"== {path}\n{path.read_text()}" for path in sorted(self.runs.glob("*/logs/slurm-*.out")))

    def clear(self) -> None:
        """Cancel all jobs but those on SIDE, bring killed nodes back, wait until the nodes are idle."""
        lines = self.run("squeue", "-h", "-o", "%A %n").stdout.splitlines()
        self.run("scancel", *{line.split()[0] for line in lines if " side" not in line}, check=False)
        for node in self.killed():  # Slurm itself may not have noticed yet
            self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=power")
        deadline = time.monotonic() + 180
        while set(states := self.nodes()) != {"idle"}:
            assert time.monotonic() < deadline, states
            for node in NODES:
                if self.nodes(node)[0].startswith("down"):
                    self.run(str(TESTCLUSTER), "start-node", node, "--dir", str(self.folder), check=False)
            time.sleep(POLL_S)

    def killed(self) -> list[str]:
        """The nodes of tests of which no process is left."""
        said = self.run(str(TESTCLUSTER), "status", "--dir", str(self.folder), check=False).stdout.splitlines()
        gone = {line.split()[0] for line in said if line.endswith("not running")}
        return [node for node in NODES if f"node-{node}" in gone]

    def inside(self, node: str) -> tuple[str, ...]:
        """What starts a command in the network of a node."""
        if not can_network():
            pytest.skip("nodes have no network of their own here: that takes network namespaces and tc (iproute2)")
        return ("nsenter", f"--net=/proc/{(self.folder / 'run' / f'node-{node}.pid').read_text()}/ns/net")

    def links(self) -> list[str]:
        """The hardware addresses of the bridge and of all nodes; other addresses of a link come and go."""
        outside = self.run("ip", "-o", "link", "show", "type", "bridge").stdout
        shown = [self.run(*self.inside(node), "ip", "-o", "link", "show", "eth0").stdout for node in NODES]
        return [re.findall(r"link/ether (\S+)", text)[-1] for text in (outside, *shown)]

    def address(self, node: str) -> tuple[str, int]:
        """Where the slurmd of a node listens."""
        record = self.run("scontrol", "show", "node", "-o", node).stdout
        fields = dict(word.partition("=")[::2] for word in record.split())
        return fields["NodeAddr"], int(fields["Port"])

    def nodes(self, *names: str) -> list[str]:
        """The states of these nodes, by default of all that tests use."""
        wanted = ",".join(names or (*NODES, NEWER))
        return self.run("sinfo", "-h", "-N", "-p", "debug", "-n", wanted, "-o", "%T").stdout.split()

    def testcluster(self, command: str, *words: str) -> None:
        """slurm/testcluster on this cluster."""
        self.run(str(TESTCLUSTER), command, *words, "--dir", str(self.folder))

    @contextmanager
    def slowed(self, node: str, rate: str) -> Iterator[None]:
        """A node behind a slow link, which is as before afterwards."""
        if not can_network():
            pytest.skip("a node's network cannot be slowed down here: that takes network namespaces and tc (iproute2)")
        self.testcluster("slow-node", node, rate)
        try:
            yield
        finally:
            self.testcluster("slow-node", node, "full")

    def kill_node(self, node: str) -> None:
        """A power failure of a node, which Slurm hears of at once; by itself it needs a while to find out."""
        self.testcluster("kill-node", node)
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=power")


def stop_left_over() -> None:
    """Stop the cluster of a test run that was killed; while the lock is held, any other one is such."""
    for folder in Path("/tmp").glob(f"{PREFIX}*"):
        subprocess.run([str(TESTCLUSTER), "stop", "--dir", str(folder)], capture_output=True, timeout=60)
        shutil.rmtree(folder)


def wait_for(path: Path, text: str, *, timeout_s: float = 240, poll_s: float = POLL_S) -> str:
    """The content of a file, as soon as it holds `text`."""
    deadline = time.monotonic() + timeout_s
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < deadline, f"no {text!r} in {path}: {path.read_text() if path.exists() else 'absent'}"
        time.sleep(poll_s)
    return path.read_text()


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 240) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(POLL_S)


def steps(run: Path) -> list[dict[str, int]]:
    """What the stepper did."""
    return [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]


def ledger(run: Path) -> list[dict[str, object]]:
    """Lines of the run's ledger."""
    return [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]


def events(run: Path, name: str) -> list[dict[str, object]]:
    """What the driver of the batch job noted under this name."""
    return [line for line in ledger(run) if line.get("event") == name]


@contextmanager
def one_cluster() -> Iterator[Slurm]:
    """A cluster of the test nodes; one at a time on this machine.

    Two at once would share the control groups of nodes that have the same names.
    """
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stop_left_over()
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/tmp"))  # munge's socket wants a short path
        slurm = Slurm(folder, folder)
        try:
            leaves = [word for leaf in LEAVES for word in ("--leaf", leaf)]
            (folder / "prolog").write_text(f"#!/bin/sh\n[ ! -e {folder}/no-prolog-$SLURMD_NODENAME ]\n")
            (folder / "prolog").chmod(0o755)
            (folder / "more.conf").write_text(f"Prolog={folder}/prolog\n")
            port = str(17000 + os.getpid() % 3000)
            options = [
                f"--extra-conf={folder / 'more.conf'}",
                "--gpu-type",
                f"{NEWER}=h100",
                *(["--network"] * can_network()),
                *(["--accounting"] * ACCOUNTING),
            ]
            patience = ("--grace", "120", "--kill-wait", "8", "--slurmd-timeout", "12")  # the machine may be loaded
            slurm.testcluster("start", "--port", port, *patience, *leaves, *options)
            yield slurm
        finally:
            slurm.run(str(TESTCLUSTER), "stop", "--dir", str(folder), check=False)  # also where the caller failed
            shutil.rmtree(folder)


def losses(run: Path) -> list[float]:
    """The losses of a training, in the order of its steps."""
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def can_network() -> bool:
    """Whether nodes may have a network of their own, which tc can slow down."""
    try:
        return subprocess.run(["unshare", "--net", "tc", "qdisc"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
