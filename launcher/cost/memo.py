"""Pieces that many layouts share, worked out once for each object."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Any, TypeVar, cast

_T = TypeVar("_T")


class _Once:
    """A method that keeps what it returns.

    An instance that asks for it gets a function with a dictionary of its own, which then hides this descriptor: a
    search comes here some hundred thousand times.
    """

    def __init__(self, method: Callable[..., Any], key: Callable[..., Any] | None) -> None:
        self.method, self.key = method, key
        update_wrapper(cast("Any", self), method)

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        method, key = self.method, self.key
        known: dict[Any, Any] = {}

        def by_arguments(*args: Any) -> Any:
            found = known.get(args)
            if found is None:
                found = known[args] = method(instance, *args)
            return found

        def by_key(*args: Any) -> Any:
            at = key(*args) if key else args
            found = known.get(at)
            if found is None:
                found = known[at] = method(instance, *args)
            return found

        kept = instance.__dict__[method.__name__] = by_key if key else by_arguments
        return kept


def once(key: Callable[..., Any] | None = None) -> Callable[[Callable[..., _T]], Callable[..., _T]]:
    """Keep what a method returns, by what `key` makes of its arguments: all that its result depends on. Without a key:
    by its arguments.

    A key of its own, which is one more call, is for methods with arguments that the result does not depend on.
    """
    return lambda method: cast("Callable[..., _T]", _Once(method, key))
