"""Process groups of all ranks, made again and again in the same processes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.tensor import debug

from launcher.fast_exit import wait_for_native_threads


@dataclass(frozen=True)
class Worlds:
    """Makes the process group of all ranks again and again, each time with nothing left of the one before."""

    store: Store
    rank: int
    size: int
    backend: str
    timeout: timedelta

    @contextmanager
    def world(self, name: str) -> Iterator[None]:
        """Join a world of its own for the block, in which all ranks end together; the groups go with the next one."""
        if dist.is_initialized():
            dist.destroy_process_group()
            forget_groups()
        store = PrefixStore(name, self.store)
        dist.init_process_group(self.backend, store=store, rank=self.rank, world_size=self.size, timeout=self.timeout)
        try:
            yield
        finally:
            _collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def forget_groups() -> None:
    """Let go of process groups that were destroyed: a thread of gloo wakes up 100 times a second for each.

    DTensor keeps meshes, and they their groups, in what it remembers of operators (torch 2.13).
    """
    debug._clear_sharding_prop_cache()  # type: ignore[no-untyped-call]
    _collect()


def _collect() -> None:
    """Free what is in circles: a model that has the last reference to its group joins gloo's threads with the GIL."""
    wait_for_native_threads()
    gc.collect()
