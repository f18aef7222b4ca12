"""Two hosts with a real sshd, for the tests of a module."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ssh_hosts import NEEDED, PATH, SPACES, Hosts


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with started_hosts() as found:
        yield found


@pytest.fixture
def hosts6() -> Iterator[Hosts]:
    """Hosts whose names and addresses are those of IPv6."""
    with started_hosts(ipv6=True) as found:
        yield found


@contextmanager
def started_hosts(*, ipv6: bool = False) -> Iterator[Hosts]:
    missing = [name for name in NEEDED if not shutil.which(name, path=PATH)]
    if missing:
        pytest.skip(f"no {', '.join(missing)} here: install openssh-server, openssh-client and iproute2")
    if os.geteuid() != 0 or subprocess.run(["unshare", *SPACES, "--", "true"], capture_output=True).returncode:
        pytest.skip("no namespaces may be made here (root, and CAP_SYS_ADMIN in a container), so there are no hosts")
    folder = Path(tempfile.mkdtemp(prefix="launcher-ssh-", dir="/tmp"))
    folder.chmod(0o755)
    found = Hosts(folder, ipv6=ipv6)
    try:
        found.start()
        yield found
    finally:
        found.stop()
        shutil.rmtree(folder)
