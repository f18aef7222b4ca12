"""Pieces that many layouts share, worked out once for each object."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

_T = TypeVar("_T")
_Self = TypeVar("_Self")


def once(key: Callable[..., Any]) -> Callable[[Callable[..., _T]], Callable[..., _T]]:
    """Keep what a method returns, by what `key` makes of its arguments: all that its result depends on.

    Kept in a dictionary of the instance, one a method.
    """

    def decorate(method: Callable[..., _T]) -> Callable[..., _T]:
        name = f"_kept_{method.__name__}"

        @wraps(method)
        def kept(self: Any, *args: Any) -> _T:
            known: dict[Any, _T] | None = self.__dict__.get(name)
            if known is None:
                known = self.__dict__[name] = {}
            found = known.get(at := key(*args))
            if found is None:
                found = known[at] = method(self, *args)
            return found

        return kept

    return decorate
