"""`launcher report`: one HTML page about a run, written into its folder."""

from __future__ import annotations

from pathlib import Path

from launcher.commands.common import named_run, options, run_folder
from launcher.commands.invocation import Invocation
from launcher.files import write_text
from launcher.report.html import run_page


def run(invocation: Invocation) -> int:
    name, words = named_run(invocation.overrides, command="report")
    wanted = options(words, allowed=["file"])
    folder = run_folder(name)
    path = Path(wanted.get("file", folder.report))
    write_text(path, run_page(folder))
    print(path)
    return 0
