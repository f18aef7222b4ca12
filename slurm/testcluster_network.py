"""A network of its own for every node of slurm/testcluster: a network namespace behind a bridge of this machine."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

# Run in the node's namespace before slurmd: the interface comes from outside.
NODE_NETWORK = """
ip link set lo up || exit 1
until ip link show eth0 >/dev/null 2>&1; do sleep 0.02; done
ip addr add "$3/24" dev eth0 && ip link set eth0 up || exit 1
"""
WAIT_S = 10.0
CONTROLLER = 253  # its index, behind all nodes'
FULL = "full"  # in place of a rate


class Network:
    """One bridge, known by the port of the controller, and an address for every node."""

    def __init__(self, port: int) -> None:
        self.bridge = f"lab{port}"
        self.subnet = f"10.87.{port % 250}"

    @property
    def controller(self) -> str:
        return f"{self.subnet}.{CONTROLLER + 1}"

    def address(self, index: int) -> str:
        return f"{self.subnet}.{index + 1}"

    def start(self) -> None:
        self.stop()  # what a cluster that was killed left behind
        # Of its own: without one it has the least of its nodes', and another one after a node has died.
        ip("link", "add", self.bridge, "address", hardware_address(CONTROLLER), "type", "bridge")
        ip("addr", "add", f"{self.controller}/24", "dev", self.bridge)
        ip("link", "set", self.bridge, "up")

    def stop(self) -> None:
        """Remove the bridge and the nodes' interfaces, which the kernel does too once a node's namespace is gone."""
        for path in Path("/sys/class/net").glob(f"{self.bridge}*"):
            remove(path.name)

    def connect(self, index: int, pid: int) -> None:
        """Give the process `pid`, which is making its namespace at this moment, the interface eth0."""
        deadline = time.monotonic() + WAIT_S
        while own_network(pid) == own_network(os.getpid()) and time.monotonic() < deadline:
            time.sleep(0.01)
        remove(self.link(index))  # of a node that was killed: the kernel takes its time
        peer = ["peer", "name", "eth0", "address", hardware_address(index), "netns", str(pid)]
        ip("link", "add", self.link(index), "type", "veth", *peer)
        ip("link", "set", self.link(index), "master", self.bridge, "up")

    def link(self, index: int) -> str:
        return f"{self.bridge}n{index + 1}"

    def slow_down(self, index: int, pid: int, rate: str) -> None:
        """Limit what a node sends and receives to a rate as tc takes it (20mbit); FULL lifts the limit."""
        for inside, device in (([], self.link(index)), (["nsenter", f"--net=/proc/{pid}/ns/net"], "eth0")):
            root = ["dev", device, "root"]
            if rate == FULL:
                run(*inside, "tc", "qdisc", "del", *root)
            else:
                run(*inside, "tc", "qdisc", "replace", *root, "tbf", "rate", rate, "burst", "64kb", "latency", "400ms")


def hardware_address(index: int) -> str:
    """The same after a restart, as a machine's: the other nodes send to the one that they know for up to a minute."""
    return f"02:00:00:00:00:{index + 1:02x}"


def own_network(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/net").readlink())


def remove(link: str) -> None:
    """Remove an interface of this machine, if there is one."""
    try:
        ip("link", "del", link)
    except OSError:
        if Path("/sys/class/net", link).exists():
            raise


def ip(*words: str) -> None:
    """Run ip; raises OSError with what it said."""
    run("ip", *words)


def run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(argv)}: {done.stderr.strip()}")
