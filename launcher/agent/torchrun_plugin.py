"""Loaded by torch's entry-point group `torchrun.handlers`: every torchrun imports this file, so it imports nothing.

The rendezvous itself is launcher/rendezvous/plan_ordered.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters


def handler_creator() -> Callable[[RendezvousParameters], RendezvousHandler]:
    """Return the factory that torch calls for each `--rdzv-backend=launcher`."""
    return _create


def _create(params: RendezvousParameters) -> RendezvousHandler:
    from launcher.agent.torchrun_config import create_handler

    return create_handler(params)
