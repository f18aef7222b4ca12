"""Two hosts for the tests: network namespaces behind a bridge, each with a name, a process tree and a real sshd."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "slurm"))
from sshd_settings import CLIENT, PATH, write_settings  # noqa: E402
from testcluster_network import NODE_NETWORK, Network, ip  # noqa: E402

NEEDED = ("sshd", "ssh", "ssh-keygen", "unshare", "ip")
NAMES = ("h10", "h2")  # sorted by name they would change places
SPACES = ["--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private", "--net"]
INIT = """
hostname "$1" || exit 1
[ -z "$4" ] || ip -6 addr add "$4/64" dev eth0 nodad || exit 1
mount --bind "$2/hosts" /etc/hosts || exit 1
mkdir -p /run/sshd
/usr/sbin/sshd -D -e -f "$2/sshd_config" & sshd=$!
trap 'kill -TERM $sshd' TERM
while kill -0 $sshd 2>/dev/null; do wait $sshd; done
"""
POLL_S = 0.1
PREFIX6 = "fd89::"


class Hosts:
    """Hosts that ssh reaches as h10 and h2, with its configuration in `options`; `ipv6`: at such addresses alone."""

    def __init__(self, folder: Path, *, ipv6: bool = False) -> None:
        self.folder, self.ipv6 = folder, ipv6
        self.network = Network(os.getpid() % 250)
        family, subnet = ("six", "10.90") if ipv6 else ("ssh", "10.89")  # both may be there at a time
        self.network.bridge, self.network.subnet = f"{family}{os.getpid() % 10**6}", f"{subnet}.{os.getpid() % 250}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def options(self) -> list[str]:
        """Of the launcher, to reach them."""
        return ["launch=ssh", f"launch.hosts=[{','.join(NAMES)}]", f"launch.ssh_options=-F {self.folder}/client"]

    @property
    def impatient(self) -> list[str]:
        """As `options`, where the test is about a host that is silent: it is found out in 3 s, and so is a busy one."""
        *others, ssh = self.options
        return [*others, f"{ssh} -o ServerAliveInterval=1"]

    def start(self) -> None:
        write_settings(self.folder)
        addresses = {name: self.address(index) for index, name in enumerate(NAMES)}
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in addresses.items())]
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")
        hosts = "".join(f"Host {name}\n    HostName {address}\n" for name, address in addresses.items())
        options = {"User": "root", "IdentityFile": f"{self.folder}/key", **CLIENT}
        lines = ["Host h* fd89*", *(f"    {name} {value}" for name, value in options.items())]
        (self.folder / "client").write_text(hosts + "\n".join(lines) + "\n")
        self.network.start()
        if self.ipv6:
            ip("-6", "addr", "add", f"{PREFIX6}fe/64", "dev", self.network.bridge, "nodad")
        for name in NAMES:
            self.start_host(name)

    def address(self, index: int) -> str:
        return f"{PREFIX6}{index + 1}" if self.ipv6 else self.network.address(index)

    def start_host(self, name: str) -> None:
        index = NAMES.index(name)
        words = ["unshare", *SPACES, "--", "sh", "-c", NODE_NETWORK + INIT, "sh", name, str(self.folder)]
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*words, self.network.address(index), self.address(index) if self.ipv6 else ""],
                env={**os.environ, "PATH": PATH}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self.processes[name] = process
        self.network.connect(index, process.pid)
        deadline = time.monotonic() + 120
        while self.ssh(name, "true").returncode:
            assert time.monotonic() < deadline, (self.folder / f"{name}.log").read_text()
            time.sleep(POLL_S)

    def ssh(self, name: str, command: str) -> subprocess.CompletedProcess[str]:
        words = ["ssh", "-F", str(self.folder / "client"), "-o", "ConnectTimeout=10", name, command]
        return subprocess.run(words, capture_output=True, text=True, timeout=120)

    def kill_host(self, name: str) -> None:
        """As a power failure: nobody says goodbye."""
        ip("link", "set", self.network.link(NAMES.index(name)), "down")
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait()

    def cut(self, name: str) -> None:
        ip("link", "set", self.network.link(NAMES.index(name)), "down")

    def mend(self, name: str) -> None:
        ip("link", "set", self.network.link(NAMES.index(name)), "up")

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        self.network.stop()
