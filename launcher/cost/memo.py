"""Pieces that many layouts share, worked out once for each object."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

_T = TypeVar("_T")


def once(key: Callable[..., Any] | None = None) -> Callable[[Callable[..., _T]], Callable[..., _T]]:
    """Keep what a method returns, by what `key` makes of its arguments: all that its result depends on. Without a key:
    by its arguments.

    Kept in a dictionary of the instance, one a method. A search comes here some ten thousand times, so that a key of
    its own, which is one more call, is for methods with arguments that the result does not depend on.
    """

    def decorate(method: Callable[..., _T]) -> Callable[..., _T]:
        name = f"_kept_{method.__name__}"

        @wraps(method)
        def kept(self: Any, *args: Any) -> _T:
            at = args if key is None else key(*args)
            known: dict[Any, _T] | None = self.__dict__.get(name)
            if known is None:
                known = self.__dict__[name] = {}
            found = known.get(at)
            if found is None:
                found = known[at] = method(self, *args)
            return found

        return kept

    return decorate
