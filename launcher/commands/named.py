"""A run that the user named, and the options after its name: of commands that look at runs, which need no planner."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.agent.launch import is_submitted
from launcher.errors import InputError
from launcher.run.folder import RunFolder, one_run
from launcher.run.listing import LAST, newest_run
from launcher.run.owner import read_owner

OVERRIDE = re.compile(r"^[+~]?[\w@./]+=")


def named_run(words: Sequence[str], *, command: str) -> tuple[str, Sequence[str]]:
    """Return the run that the user named (a folder, a Slurm job id, or `last`) and the words after it."""
    if not words or OVERRIDE.match(words[0]):
        raise InputError(f"`launcher {command}` needs a run: launcher {command} runs/NAME")
    return resolved(words[0]), words[1:]


def resolved(name: str) -> str:
    """Return what a user named, with `last` for the newest run here; a folder that is called so comes first."""
    return str(newest_run(Path())) if name == LAST and not Path(name).exists() else name


def on_login_node(words: Sequence[str]) -> RunFolder | None:
    """Return the folder of the run that a user named, if the run is on a login node (launch.login)."""
    if not words or OVERRIDE.match(words[0]):
        return None
    try:
        folder = RunFolder(Path(resolved(words[0])))
    except InputError:  # there is no last run, which the command itself says
        return None
    return folder if folder.login.is_file() else None


def one_folder(name: str) -> RunFolder:
    """Return the folder of one run on this machine; raises InputError if there is none, or it is a sweep's."""
    return one_run(run_folder(name).path)


def run_folder(name: str) -> RunFolder:
    """Return the folder of a run, or of a sweep, on this machine; raises InputError if there is none."""
    path = Path(name)
    if not path.is_dir():
        raise InputError(f"{path} is not a folder: give a run folder that `launcher run` or `launcher submit` made")
    return RunFolder(path)


def submitted(name: str) -> bool:
    """Return whether a run was submitted to Slurm: a folder with a submission record, or a job id."""
    path = Path(name)
    if not path.exists():
        return re.fullmatch(r"[0-9]{1,18}(_[0-9]{1,18})?", name) is not None
    owner = read_owner(RunFolder(path))
    return is_submitted(path) if owner is None else owner.job_id is not None


def says_json(wanted: Mapping[str, str]) -> bool:
    """Return whether the options of a command ask for a document; raises InputError for an unknown format."""
    output = wanted.get("output", "text")
    if output not in ("text", "json"):
        raise InputError(f"output={output} is not one of text, json")
    return output == "json"


def options(words: Sequence[str], *, allowed: Sequence[str]) -> dict[str, str]:
    """Parse the `key=value` words after a run's name; raises InputError for a key that is not allowed."""
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in allowed:
            known = ", ".join(f"{name}=…" for name in allowed) or "none"
            raise InputError(f"{word} is not an option here: allowed are {known}")
        found[key] = value
    return found
