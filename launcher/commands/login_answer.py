"""What comes back from a login node: the launcher's document or page, and what a shell there prints around it.

A banner, a login script that echoes, or a forced command writes to the same standard output.
"""

from __future__ import annotations

from typing import Any

from launcher.errors import LauncherError
from launcher.files import json_objects

MOST_SHOWN = 300  # characters of an answer that is none
PAGE, PAGE_ENDS = "<!doctype html>", "</html>"


def submitted(out: bytes, *, python: str, login: str, code: int) -> dict[str, Any]:
    """Return the document of `launcher submit` in what was printed there: of a job, or of an error where `code` is set.

    Raises LauncherError where there is none.
    """
    text = out.decode(errors="replace")
    documents = list(json_objects(text))
    for document in documents[::-1]:
        if isinstance(document.get("error"), dict) if code else _is_job(document):
            return document
    which = "launch.login_python names the interpreter there that has the launcher"
    if code:
        raise LauncherError(
            f"{python} on {login} did not answer as the launcher (exit code {code}{_instead(text)}), see above: {which}"
        )
    raise LauncherError(
        f"{python} on {login} ended without an error and named no job{_instead(text)}: look there by `squeue` whether "
        f"one was submitted; {which}"
    )


def page(out: bytes, *, login: str) -> str:
    """Return the page of `launcher report` in what was printed there; raises LauncherError where there is none."""
    text = out.decode(errors="replace")
    begin, end = text.find(PAGE), text.rfind(PAGE_ENDS)
    if not 0 <= begin < end:
        raise LauncherError(f"{login} sent no page{_instead(text)}: try `launcher report` there")
    return text[begin : end + len(PAGE_ENDS)] + "\n"


def _is_job(document: dict[str, Any]) -> bool:
    return all(isinstance(document.get(key), str) for key in ("job_id", "run_folder"))


def _instead(text: str) -> str:
    """Return what was printed, in a few words."""
    words = " ".join(text.split())
    return f", but printed {words[:MOST_SHOWN]!r}" if words else " and printed nothing"
