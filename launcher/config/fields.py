"""Typed values out of plain data: every problem is collected, so that the user hears of all at once."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from launcher.errors import InputError

_T = TypeVar("_T")
AUTO = "auto"
MOST = 10**9  # of any whole number that has no limit of its own: what is above is a slip of the finger


class Fields:
    """Reads the keys of one mapping; `prefix` is how the user names it (`cluster.node`).

    Each reader returns a usable value even after a problem, so that reading goes on; `close` raises what was found.
    """

    def __init__(self, data: Mapping[str, Any], prefix: str, problems: list[str] | None = None) -> None:
        self._data = data
        self._prefix = prefix
        self._seen: set[str] = set()
        self.problems = [] if problems is None else problems

    def nested(self, key: str) -> Fields:
        """The fields of a mapping inside this one; problems are shared."""
        value = self._take(key, {})
        if not isinstance(value, Mapping):
            self._tell(key, value, "must be a group of keys", {})
            value = {}
        return Fields(value, self._name(key), self.problems)

    def integer(self, key: str, default: int | None = None, *, minimum: int | None = None, maximum: int = MOST) -> int:
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            return self._tell(key, value, "must be a whole number", minimum or 0)
        if minimum is not None and value < minimum:
            return self._tell(key, value, f"must be at least {minimum}", minimum)
        if value > maximum:
            return self._tell(key, value, f"must be at most {maximum:,}", minimum or 0)
        return value

    def auto_integer(self, key: str, *, minimum: int = 1) -> int | None:
        """A whole number, or None for `auto`."""
        if self._is_auto(key):
            return None
        value = self._data[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            return self._tell(key, value, f"must be a whole number of at least {minimum}, or auto", minimum)
        if value > MOST:
            return self._tell(key, value, f"must be at most {MOST:,}, or auto", minimum)
        return value

    def number(
        self,
        key: str,
        default: float | None = None,
        *,
        minimum: float | None = None,
        above: float | None = None,
        below: float | None = None,
    ) -> float:
        """`minimum` may be reached, `above` and `below` may not."""
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return self._tell(key, value, "must be a number", minimum or 0.0)
        if minimum is not None and value < minimum:
            return self._tell(key, value, f"must be at least {minimum:g}", minimum)
        if above is not None and not value > above:
            return self._tell(key, value, f"must be above {above:g}", above + 1)
        if below is not None and not value < below:
            return self._tell(key, value, f"must be below {below:g}", below)
        return float(value)

    def optional_number(self, key: str, *, minimum: float = 0.0) -> float | None:
        if self._take(key, None) is None:
            return None
        return self.number(key, minimum=minimum)

    def auto_number(self, key: str, *, minimum: float = 0.0, below: float | None = None) -> float | None:
        """A number, or None for `auto`."""
        return None if self._is_auto(key) else self.number(key, minimum=minimum, below=below)

    def flag(self, key: str, default: bool | None = None) -> bool:
        value = self._take(key, default)
        return value if isinstance(value, bool) else self._tell(key, value, "must be true or false", False)

    def auto_flag(self, key: str) -> bool | None:
        if self._is_auto(key):
            return None
        value = self._take(key, None)
        return value if isinstance(value, bool) else self._tell(key, value, "must be true, false or auto", None)

    def text(self, key: str, default: str | None = None) -> str:
        value = self._take(key, default)
        return value if isinstance(value, str) else self._tell(key, value, "must be a word", "")

    def optional_text(self, key: str) -> str | None:
        return None if self._take(key, None) is None else self.text(key)

    def choice(self, key: str, allowed: Sequence[str], default: str | None = None) -> str:
        value: str = self._take(key, default)
        return value if value in allowed else self._tell(key, value, f"is not one of {', '.join(allowed)}", allowed[0])

    def auto_choice(self, key: str, allowed: Sequence[str]) -> str | None:
        return None if self._is_auto(key) else self.choice(key, allowed)

    def integers(self, key: str) -> tuple[int, ...] | None:
        """A list of whole numbers, or None for `auto` or an absent key."""
        if self._is_auto(key) or self._data[key] is None:
            return None
        value = self._data[key]
        if isinstance(value, list | tuple) and all(isinstance(v, int) and not isinstance(v, bool) for v in value):
            return tuple(value)
        return self._tell(key, value, "must be a list of whole numbers, as [2,2,4]", ())

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self._take(key, {}) or {}
        return value if isinstance(value, Mapping) else self._tell(key, value, "must be a group of keys", {})

    def raw(self, key: str, default: Any = None) -> Any:
        """The value as it stands, for the caller to judge."""
        return self._take(key, default)

    def problem(self, message: str) -> None:
        self.problems.append(message)

    def close(self) -> None:
        """Tell keys that nothing has read."""
        for key in self._data:
            if key not in self._seen:
                self.problems.append(unknown_key(self._name(key), [self._name(k) for k in sorted(self._seen)]))

    def _name(self, key: str) -> str:
        return f"{self._prefix}.{key}" if self._prefix else key

    def _take(self, key: str, default: Any) -> Any:
        self._seen.add(key)
        return self._data.get(key, default)

    def _is_auto(self, key: str) -> bool:
        return bool(self._take(key, AUTO) == AUTO)

    def _tell(self, key: str, value: Any, rule: str, fallback: _T) -> _T:
        found = "is missing and" if value is None else f"= {value!r}"
        self.problems.append(f"{self._name(key)} {found} {rule}")
        return fallback


def raise_problems(problems: Sequence[str]) -> None:
    """Raise InputError with all problems, if there are any."""
    if problems:
        raise InputError(problems)


def unknown_key(name: str, allowed: Sequence[str]) -> str:
    """The message for a key or choice that does not exist, with the nearest that do."""
    close = difflib.get_close_matches(name, allowed, n=2, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(allowed)}"
    return f"{name} is not a known key: {hint}"
