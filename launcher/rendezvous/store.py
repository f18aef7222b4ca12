"""torch's store of one round, opened by the first node's agent on one address; rank 0 would open it on all."""

from __future__ import annotations

from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from launcher.rendezvous.coordinator import listen

STORE_TIMEOUT = timedelta(seconds=300)


def open_store(host: str) -> tuple[TCPStore, int]:
    """Return a store that serves on this address as long as it exists, and its port."""
    listener = listen(host, 0)
    port: int = listener.getsockname()[1]
    store = TCPStore(
        host, port, is_master=True, wait_for_workers=False, timeout=STORE_TIMEOUT, master_listen_fd=listener.detach()
    )
    return store, port


def join_store(host: str, port: int) -> TCPStore:
    """Connect to the store of another process; raises ConnectionError if it does not answer."""
    try:
        return TCPStore(host, port, is_master=False, timeout=STORE_TIMEOUT)
    except RuntimeError as error:
        raise ConnectionError(str(error)) from error
