"""Peak of the bytes that tensors hold, measured by following every storage from its first use to its end."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.ops.prim.device.default


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the storages that operators return while it is entered; `peak_bytes` is the most that lived at once.

    Works on real and on fake tensors. What an operator allocates inside itself is not seen. With `scalars` a value read
    from a tensor (`.item()`) is 1: fake tensors have none.
    """

    def __init__(self, *, scalars: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = 0
        self.peak_bytes = 0
        self._scalars = scalars
        self._sizes: dict[int, int] = {}
        self._ends: dict[int, Any] = {}
        self._resize: Callable[..., Any] | None = None

    def __enter__(self) -> LiveBytes:
        # FSDP2 frees and allocates gathered parameters by resizing their storage, which is no operator.
        self._resize = original = torch.UntypedStorage.resize_

        def resize(storage: torch.UntypedStorage, size: int) -> Any:
            result = original(storage, size)
            self._follow(storage)
            return result

        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign,assignment]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign,assignment]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is DEVICE and isinstance(
            args[0], FakeTensor
        ):  # two of three calls; by the dispatcher they are a tenth of the time
            return FakeTensor.__torch_dispatch__(func, types, args)
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # its local tensors come by here on their own
        if self._scalars and func is torch.ops.aten._local_scalar_dense.default:
            return type_of_scalar(args[0])(1)
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._follow(leaf.untyped_storage())
        return result

    def follow(self, tensors: Iterable[Tensor]) -> int:
        """Count plain tensors from before this mode was entered; the bytes that this adds."""
        before = self.live_bytes
        for tensor in tensors:
            self._follow(tensor.untyped_storage())
        return self.live_bytes - before

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        known = self._sizes.get(key)
        if known is None:
            self._ends[key] = weakref.ref(storage, lambda _: self._end(key))
        if size != known:
            self._sizes[key] = size
            self.live_bytes += size - (known or 0)
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _end(self, key: int) -> None:
        self.live_bytes -= self._sizes.pop(key)
        del self._ends[key]


def type_of_scalar(tensor: Tensor) -> type:
    """The Python type that `.item()` gives."""
    if tensor.dtype == torch.bool:
        return bool
    return float if tensor.is_floating_point() else int
