"""The rendezvous of a single node."""

from __future__ import annotations

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from launcher.rendezvous.store import open_store

LOOPBACK = "127.0.0.1"


class SingleNode(RendezvousHandler):
    """Every round is complete at once; its store is on loopback, unreachable for other machines."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._closed = False
        self._store: TCPStore | None = None

    def get_backend(self) -> str:
        return "launcher-single-node"

    @property
    def use_agent_store(self) -> bool:
        """Let the ranks also use the store of each round."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        self._store, port = open_store(LOOPBACK)
        return RendezvousInfo(self._store, 0, 1, RendezvousStoreInfo(LOOPBACK, port))

    def announce_stop(self, asker: str) -> None:
        """There is nobody else to hear it."""

    @property
    def stopped_by(self) -> str:
        return ""

    def all_finished(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return self._closed

    def set_closed(self) -> None:
        self._closed = True

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        self._closed = True
        self._store = None
        return True
