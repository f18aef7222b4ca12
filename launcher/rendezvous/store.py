"""torch's store of one round, opened by the first node's agent on one address; rank 0 would open it on all.

The store asks for libuv unless it is told not to (USE_LIBUV=0 is torch's own word). Some builds of torch have none, and
before 2.8 it took no socket that listens already (https://github.com/pytorch/pytorch/pull/150215).
"""

from __future__ import annotations

from datetime import timedelta

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from launcher import env
from launcher.rendezvous.coordinator import listen

STORE_TIMEOUT = timedelta(seconds=300)


def open_store(host: str) -> tuple[TCPStore, int]:
    """Return a store that serves on this address as long as it exists, and its port."""
    if _takes_a_listener(torch.__version__) and env.get("USE_LIBUV", "1") == "1":
        try:
            return _served(host, libuv=True)
        except RuntimeError as error:
            if "without libuv" not in str(error):
                raise
    return _served(host, libuv=False)


def _takes_a_listener(version: str) -> bool:
    major, minor = version.split(".")[:2]
    return (int(major), int(minor)) >= (2, 8)


def _served(host: str, *, libuv: bool) -> tuple[TCPStore, int]:
    listener = listen(host, 0)
    port: int = listener.getsockname()[1]
    with listener:
        store = TCPStore(
            host, port, is_master=True, wait_for_workers=False, timeout=STORE_TIMEOUT,
            master_listen_fd=listener.fileno(), use_libuv=libuv,
        )  # fmt: skip
        listener.detach()  # it is the store's now
    return store, port


def join_store(host: str, port: int) -> TCPStore:
    """Connect to the store of another process; raises ConnectionError if it does not answer."""
    try:
        return TCPStore(host, port, is_master=False, timeout=STORE_TIMEOUT)
    except RuntimeError as error:
        raise ConnectionError(str(error)) from error
