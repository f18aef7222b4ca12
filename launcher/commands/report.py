"""`launcher report`: one HTML page about a run, into its folder, a plan, or two of them; or a schedule as a trace."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.commands.common import SEARCHING, plan_of
from launcher.commands.invocation import Invocation
from launcher.commands.named import OVERRIDE, named_run, one_folder, options, resolved, says_json
from launcher.console import waiting
from launcher.errors import InputError
from launcher.files import write_text, written_as
from launcher.planner import read_plan
from launcher.report.comparison import Side, check_comparable
from launcher.report.html import page, run_page
from launcher.report.pair import pair_page
from launcher.report.trace import trace
from launcher.run.folder import RunFolder
from launcher.run.spans import read_spans


def run(invocation: Invocation) -> int:
    words = _named_as_keys(invocation.overrides)
    if words and OVERRIDE.match(words[0]):
        path, text = _of_plan([word for word in words if not word.startswith("output=")])
    elif len(words) > 1 and "=" not in words[1]:
        path, text = _of_two(words[:2], options(words[2:], allowed=["file", "output"]))
    else:
        name, rest = named_run(words, command="report")
        with waiting(SEARCHING):
            path, text = _of_run(one_folder(name), options(rest, allowed=["file", "trace", "output"]))
    as_json = says_json(dict(word.split("=", 1) for word in words if word.startswith("output=")))
    with written_as(path, "file=FILE or trace=FILE"):
        write_text(path, text)
    print(json.dumps({"file": str(path), "bytes": len(text.encode())}) if as_json else path)
    return 0


def _named_as_keys(words: Sequence[str]) -> Sequence[str]:
    """A plan file may be named as it is, as for `launcher compare` and `launcher export`."""
    one = bool(words) and (len(words) == 1 or "=" in words[1])
    return [f"plan={words[0]}", *words[1:]] if one and Path(words[0]).is_file() else words


def _of_two(names: Sequence[str], wanted: Mapping[str, str]) -> tuple[Path, str]:
    """Return the page of two runs or plan files next to each other, and the file for it (default: in this folder)."""
    a, b = (Side.read(Path(resolved(name))) for name in names)
    check_comparable(a, b)
    return Path(wanted.get("file", f"report-{Path(a.name).stem}-{Path(b.name).stem}.html")), pair_page(a, b)


def _of_run(folder: RunFolder, wanted: Mapping[str, str]) -> tuple[Path, str]:
    """Return the page of a run, or its trace, and the file for it."""
    if "trace" in wanted:
        return _trace_file(wanted), trace(read_plan(folder.present_plan), read_spans(folder.spans))
    return Path(wanted.get("file", folder.report)), run_page(folder)


def _of_plan(words: Sequence[str]) -> tuple[Path, str]:
    """Return the page of a plan (of overrides or `plan=`), or its trace, and the file (default: in this folder)."""
    own = [word for word in words if word.startswith(("file=", "trace="))]
    wanted = dict(word.split("=", 1) for word in own)
    given = [word for word in words if word not in own]
    plan = plan_of(given)
    if "trace" in wanted:
        return _trace_file(wanted), trace(plan, [])
    with waiting(SEARCHING):
        return Path(wanted.get("file", RunFolder(Path()).report)), page(plan, given=given)


def _trace_file(wanted: Mapping[str, str]) -> Path:
    if "file" in wanted or not wanted["trace"]:
        raise InputError("trace=FILE names the file of the trace, in place of the page: give it a name, and no file=")
    return Path(wanted["trace"])
