"""Re-all-gather: inputs gathered for a region of the model are gathered again for its backward pass, not kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from launcher.worker.parallel.collectives import gather, gather_sequence
from launcher.worker.parallel.process_groups import ProcessGroup

Packed = Tensor | tuple[torch.Size, tuple[int, ...], Any]


def re_all_gathered(module: nn.Module, peers: ProcessGroup) -> None:
    """Give `module` the whole of an input sharded over the sequence, and keep only the shard for the backward pass
    (Korthikanti et al. 2022, section 4.2.2).

    Not inside a checkpoint, where these hooks would keep what the checkpoint is to drop; nor under a schedule that
    splits the backward pass, which cannot unpack twice.
    """
    entered: list[Any] = []

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        cut = inputs[0]
        whole = gather_sequence(cut, peers)
        kept = cut.detach()
        entered.append(made_again(whole, lambda: gather(kept, peers)))
        entered[-1].__enter__()
        return (whole, *inputs[1:])

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        entered.pop().__exit__(None, None, None)

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after, always_call=True)


@contextmanager
def made_again(whole: Tensor, make: Callable[[], Tensor]) -> Iterator[None]:
    """Do not keep `whole`, or views into it, for the backward pass of the block; recreate it by `make`."""
    kept = _Made(make, whole)
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
        yield


class _Made:
    """Replaces a tensor's bytes; the tensor exists from its first to its last unpacking."""

    def __init__(self, make: Callable[[], Tensor], whole: Tensor) -> None:
        self._make = make
        self._storage = whole.untyped_storage()._cdata
        self._whole: Tensor | None = None
        self._packed = self._unpacked = 0

    def pack(self, tensor: Tensor) -> Packed:
        if tensor.untyped_storage()._cdata != self._storage:
            return tensor
        self._packed += 1
        return tensor.shape, tensor.stride(), tensor.storage_offset()

    def unpack(self, packed: Packed) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        whole = self._make() if self._whole is None else self._whole
        self._unpacked += 1
        self._whole = whole if self._unpacked % self._packed else None
        return whole.as_strided(*packed)
