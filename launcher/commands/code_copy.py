"""launch.snapshot=true: a run starts from a copy of its code, in its folder."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from launcher import env
from launcher.agent.launch import Launch
from launcher.console import say
from launcher.errors import InputError
from launcher.planner import Plan
from launcher.run.code import CodeFiles, find_code
from launcher.run.folder import RunFolder
from launcher.run.snapshot import Snapshot, take_snapshot

SEARCH_PATH = "PYTHONPATH"


def from_copy(plan: Plan, launch: Launch, folder: RunFolder) -> tuple[Plan, Launch]:
    """Copy the code into the run folder if launch.snapshot says so; return the plan and the start that use the copy.

    Raises InputError where there is no code to copy, or the script is not in it.
    """
    launch = _without_copy(launch, folder)
    if not launch.settings.snapshot:
        return plan, launch
    code = code_of(plan, launch)
    snapshot = take_snapshot(code, folder)
    say(f"code: {code.describe()}, copied to {snapshot.copy}")
    return _moved_plan(plan, snapshot), _moved_launch(launch, snapshot)


def _without_copy(launch: Launch, folder: RunFolder) -> Launch:
    """The start without what an earlier one in this folder had of its copy."""
    given = launch.settings.environment.get(SEARCH_PATH)
    if given is None:
        return launch
    copy = Path(os.path.abspath(folder.code))  # noqa: PTH100
    entries = [entry for entry in given.split(os.pathsep) if not Path(entry).is_relative_to(copy)]
    others = {name: value for name, value in launch.settings.environment.items() if name != SEARCH_PATH}
    environment = {**others, **({SEARCH_PATH: os.pathsep.join(entries)} if entries else {})}
    return replace(launch, settings=replace(launch.settings, environment=environment))


def code_of(plan: Plan, launch: Launch) -> CodeFiles:
    """The code of a job: that of the folder of its script, or else of the working folder."""
    own = _own_file(plan)
    of_script = own is not None and not launch.settings.code
    code = find_code(own.parent if own and of_script else launch.work_dir, launch.settings.code)
    if own and own.is_relative_to(code.root) and str(own.relative_to(code.root)) not in code.files:
        raise InputError(
            f"{own} is not part of the code, since "
            + ("no pattern of launch.code matches it" if launch.settings.code else "git ignores it")
            + ": the copy would run without it"
        )
    return code


def _own_file(plan: Plan) -> Path | None:
    """The user's script, or recipe."""
    program = plan.options.program
    if program is not None:
        path = Path(program.target).resolve()
        return path if program.kind == "script" and path.is_file() else None
    file = getattr(plan.options.recipe, "file", None)
    return Path(file).resolve() if file else None


def _moved_plan(plan: Plan, snapshot: Snapshot) -> Plan:
    options = plan.options
    if options.program is not None and options.program.kind != "module":
        target = str(snapshot.of(Path(options.program.target).resolve()))
        return replace(plan, options=replace(options, program=replace(options.program, target=target)))
    if file := getattr(options.recipe, "file", None):
        moved = replace(options.recipe, file=str(snapshot.of(Path(file).resolve())))  # type: ignore[call-arg]
        return replace(plan, options=replace(options, recipe=moved))
    return plan


def _moved_launch(launch: Launch, snapshot: Snapshot) -> Launch:
    """The start in the copy. Packages of the code that are installed from where it was are found in the copy first."""
    given = launch.settings.environment.get(SEARCH_PATH) or env.get(SEARCH_PATH) or ""
    entries = given.split(os.pathsep) if given else []
    found = snapshot.search_path([*entries, *([] if launch.settings.python else sys.path)])
    moved = list(dict.fromkeys([*found, *entries]))
    environment = {**launch.settings.environment, **({SEARCH_PATH: os.pathsep.join(moved)} if moved else {})}
    return replace(
        launch,
        work_dir=snapshot.of(launch.work_dir.resolve()),
        code_root=snapshot.root,
        settings=replace(launch.settings, environment=environment),
    )
