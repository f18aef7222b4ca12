"""`launcher report`: write one HTML page about a run, into its folder, or about a plan."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from launcher.commands.common import plan_of
from launcher.commands.invocation import Invocation
from launcher.commands.named import OVERRIDE, named_run, options, run_folder, says_json
from launcher.files import write_text
from launcher.report.html import page, run_page
from launcher.run.folder import RunFolder


def run(invocation: Invocation) -> int:
    words = invocation.overrides
    if words and OVERRIDE.match(words[0]):
        path, text = _page_of_plan([word for word in words if not word.startswith("output=")])
    else:
        name, rest = named_run(words, command="report")
        folder = run_folder(name)
        path, text = Path(options(rest, allowed=["file", "output"]).get("file", folder.report)), run_page(folder)
    as_json = says_json(dict(word.split("=", 1) for word in words if word.startswith("output=")))
    write_text(path, text)
    print(json.dumps({"file": str(path), "bytes": len(text.encode())}) if as_json else path)
    return 0


def _page_of_plan(words: Sequence[str]) -> tuple[Path, str]:
    """Return the page of a plan (of overrides or `plan=`) and its file (`file=`, or in the current folder)."""
    files = [word.partition("=")[2] for word in words if word.startswith("file=")]
    plan = plan_of([word for word in words if not word.startswith("file=")])
    return Path(files[-1]) if files else RunFolder(Path()).report, page(plan)
