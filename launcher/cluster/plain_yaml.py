"""YAML of other tools, as plain data."""

from __future__ import annotations

import re
from typing import Any

from launcher.errors import InputError


def plain_yaml(text: str, what: str) -> Any:
    """The data of a text that should be `what`; raises InputError where it is not YAML, or refers to itself."""
    import yaml  # at use: a job starts without it

    if re.search(r"(^|[\s:\[,-])[&*][\w-]", text):
        raise InputError(f"this is not {what}: anchors and aliases are not read")
    try:
        return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # nosec B506  # noqa: S506 (both are safe)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"this is not {what}: it is not YAML") from error
