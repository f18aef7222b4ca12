"""Configuration keys as fields of frozen dataclasses: each field has its key's default, meaning, unit and rule.

    @dataclass(frozen=True, kw_only=True)
    class Node:
        num_gpus: int = key(meaning="GPUs of a node", minimum=1)
        host_memory_bytes: int = key(0, name="host_memory_gib", unit="GiB", scale=GIB, meaning="memory of the host")

`read` makes a value from user input (names and units of the keys). `to_plain` and `from_plain` store any dataclass as
JSON (names and units of the fields). Both are closed: a key without a field is an error.
"""

from launcher.schema.keys import AUTO, REQUIRED, Entry, Key, defaults, entries, key, names, only_read, walk
from launcher.schema.nearest import nearest, unknown_key
from launcher.schema.plain import from_plain, to_plain
from launcher.schema.reading import broken, read, rule_text

__all__ = [
    "AUTO",
    "REQUIRED",
    "Entry",
    "Key",
    "broken",
    "defaults",
    "entries",
    "from_plain",
    "key",
    "names",
    "nearest",
    "only_read",
    "read",
    "rule_text",
    "to_plain",
    "unknown_key",
    "walk",
]
