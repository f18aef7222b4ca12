"""torch's store of one round, opened by the first node's agent on one address; rank 0 would open it on all.

Some builds of torch have no libuv, for which its store asks unless it is told not to; USE_LIBUV=0 is torch's own word.
"""

from __future__ import annotations

from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from launcher import env
from launcher.rendezvous.coordinator import listen

STORE_TIMEOUT = timedelta(seconds=300)


def open_store(host: str) -> tuple[TCPStore, int]:
    """Return a store that serves on this address as long as it exists, and its port."""
    if env.get("USE_LIBUV", "1") == "1":
        try:
            return _served(host, libuv=True)
        except RuntimeError as error:
            if "without libuv" not in str(error):
                raise
    return _served(host, libuv=False)


def _served(host: str, *, libuv: bool) -> tuple[TCPStore, int]:
    listener = listen(host, 0)
    port: int = listener.getsockname()[1]
    store = TCPStore(
        host, port, is_master=True, wait_for_workers=False, timeout=STORE_TIMEOUT, master_listen_fd=listener.detach(),
        use_libuv=libuv,
    )  # fmt: skip
    return store, port


def join_store(host: str, port: int) -> TCPStore:
    """Connect to the store of another process; raises ConnectionError if it does not answer."""
    try:
        return TCPStore(host, port, is_master=False, timeout=STORE_TIMEOUT)
    except RuntimeError as error:
        raise ConnectionError(str(error)) from error
