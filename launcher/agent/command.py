"""The command of a rank that is not forked: another interpreter, any program, or a wrapper around either."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.agent.job import NodeJob
from launcher.agent.rank import MODULE, PROGRAM, SCRIPT
from launcher.agent.rank_env import RankAssignment
from launcher.agent.settings import LaunchSettings
from launcher.agent.torch_variables import needs_new_interpreter, read_too_early
from launcher.console import notify
from launcher.errors import InputError

PLACES = ("rank", "local_rank", "node", "run_dir")  # allowed in braces in launch.wrapper


def checked_program(launch: LaunchSettings, kind: str, program: str) -> LaunchSettings:
    """Return the settings for this program; raises InputError if it, or what starts it, is not on this machine."""
    if kind not in (MODULE, PROGRAM) and not Path(program).is_file():
        raise InputError(f"there is no script {program} on this machine: give the path of a Python file")
    if kind == PROGRAM:
        _check_executable(program, "program")
    check_starters(launch)
    if launch.start == "fork" and (kind == PROGRAM or launch.python or launch.wrapper):
        return replace(launch, start="spawn")
    if launch.start == "fork" and (late := read_too_early(launch.environment)):
        notify(
            f"launch.environment has {', '.join(late)}, which torch reads at its import, and it is imported already: "
            "each rank is a new interpreter in this run (launch.start=spawn)"
        )
        return replace(launch, start="spawn")
    names = needs_new_interpreter(Path(program).read_bytes()) if launch.start == "fork" and kind == SCRIPT else []
    if names:
        notify(
            f"{Path(program).name} sets {', '.join(names)} before it imports torch, which reads it at no other time: "
            "each rank is a new interpreter in this run (launch.start=spawn)"
        )
        return replace(launch, start="spawn")
    return launch


def check_starters(launch: LaunchSettings) -> None:
    """Raise InputError if launch.python or launch.wrapper is not on this machine."""
    if launch.python:
        _check_executable(launch.python, "launch.python")
    if launch.wrapper:
        words = wrapper_words(launch.wrapper, dict.fromkeys(PLACES, ""))
        _check_executable(words[0] if words else "", "launch.wrapper")


def rank_command(job: NodeJob, assignment: RankAssignment) -> tuple[str, ...]:
    """Return the command of a rank; empty for a rank that is forked."""
    launch, program = job.launch, (job.program, *job.args)
    if launch.start == "fork":
        return ()
    if job.kind == PROGRAM:
        inner = program
    elif launch.python:
        inner = (launch.python, "-u", *(["-m"] if job.kind == MODULE else []), *program)
    else:
        inner = (sys.executable, "-P", "-u", "-m", "launcher.agent.rank", job.kind, *program)
    if not launch.wrapper:
        return inner
    places = {name: getattr(assignment, name) for name in PLACES if name != "run_dir"}
    return (*wrapper_words(launch.wrapper, {**places, "run_dir": job.folder.path}), *inner)


def wrapper_words(wrapper: str, places: Mapping[str, Any]) -> list[str]:
    """Return the words of launch.wrapper with a rank's values; raises InputError for an unknown name."""
    try:
        return [word.format(**places) for word in shlex.split(wrapper)]
    except (KeyError, IndexError, ValueError) as error:
        known = ", ".join(f"{{{name}}}" for name in PLACES)
        raise InputError(
            f"launch.wrapper={wrapper!r} cannot be formatted ({error}): it may use {known}, and other braces "
            "are doubled"
        ) from error


def _check_executable(word: str, key: str) -> None:
    if shutil.which(word):
        return
    found = "is not executable" if Path(word).is_file() else "is not found"
    raise InputError(f"{key}={word} {found}: give a program that this machine can execute (chmod +x), or its path")
