"""Ports for programs that tests start: between the choice of one and its use nobody else takes it.

They are below the kernel's ephemeral range, and none of those that the launcher derives from the id of a run, nor of
the test cluster's. Each worker has a share of its own, and gives none of them twice in a row.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from functools import lru_cache
from itertools import count

FIRST, SHARE, WORKERS = 10_000, 500, 12


def free_port(host: str = "127.0.0.1") -> int:
    for _ in range(SHARE):
        port = FIRST + SHARE * _worker() + next(_numbers()) % SHARE
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with suppress(OSError), socket.socket(family) as probe:  # taken
            probe.bind((host, port))
            return port
    raise AssertionError(f"no port is free on {host}")


def _worker() -> int:
    """The number of pytest-xdist's worker."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS


@lru_cache
def _numbers() -> count[int]:
    return count(os.getpid())
