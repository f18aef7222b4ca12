"""`launcher keys`: list configuration keys with default, allowed values and meaning."""

from __future__ import annotations

import json

from launcher.commands.invocation import Invocation
from launcher.config.reference import as_data, as_markdown, as_text, matching, references
from launcher.console import show
from launcher.errors import InputError

OUTPUTS = ("text", "json", "markdown")


def run(invocation: Invocation) -> int:
    """Print the keys that begin with a word, or contain it in their name or meaning; all keys without a word."""
    words = [word for word in invocation.overrides if not word.startswith("output=")]
    [output] = [word.removeprefix("output=") for word in invocation.overrides if word not in words][-1:] or ["text"]
    if output not in OUTPUTS or len(words) > 1:
        raise InputError(f"`launcher keys` takes one word and output={'|'.join(OUTPUTS)}: launcher keys train.check")
    if output == "markdown":
        print(as_markdown(), end="")
        return 0
    keys = matching(words[0]) if words else references()
    if output == "json":
        print(json.dumps({"keys": as_data(keys)}))
    else:
        show(as_text(keys))
    return 0
