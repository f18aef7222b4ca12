"""Plain data as YAML. Words are quoted as in JSON: a bare `no` would be False."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def to_yaml(data: Mapping[str, Any], indent: str = "") -> str:
    """Block style for mappings and lists, JSON for scalars, a block of text for words with line ends."""
    return "".join(_entry(f"{indent}{key}:", value, indent) for key, value in data.items())


def _entry(head: str, value: Any, indent: str) -> str:
    if isinstance(value, Mapping) and value:
        return f"{head}\n{to_yaml(value, indent + '  ')}"
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        return f"{head}\n" + "".join(_item(item, indent) for item in value)
    if isinstance(value, str) and "\n" in value:
        return f"{head} |\n" + "".join(f"{indent}  {line}\n" if line else "\n" for line in value.splitlines())
    return f"{head} {json.dumps(value, ensure_ascii=False)}\n"


def _item(item: Any, indent: str) -> str:
    if isinstance(item, Mapping) and item:
        return f"{indent}- {to_yaml(item, indent + '  ').lstrip()}"
    return _entry(f"{indent}-", item, indent)
