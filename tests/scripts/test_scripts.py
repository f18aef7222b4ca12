"""Scripts in the habits of their authors end alike under torchrun and under the launcher: by fork, by spawn, warm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import preloaded
import pytest

from launcher.commands.warm import SERVER
from launcher.faststart import warm
from launcher.faststart.inherited import Inherited

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
PYTHON = [sys.executable, "-P", "-m"]
STARTS = {
    "fork": ["launch.warm=never"],
    "spawn": ["launch.warm=never", "launch.start=spawn"],
    "warm": ["launch.warm=auto"],
}


OPTIONS = {"script": [], "module": ["-m"], "program": ["--no-python"]}  # of torchrun


@dataclass(frozen=True)
class Habit:
    script: str
    args: tuple[str, ...] = ()
    code: int = 0
    restarts: int = (
        0  # of the launcher alone: torchrun's own (2.13) often hangs, as gloo finds addresses of the first start
    )
    by_spawn: bool = False  # the launcher itself starts it so
    in_its_folder: bool = False
    kind: str = "script"
    spawned: bool = True  # by launch.start=spawn too, a new interpreter for each rank as torchrun's
    cold: bool = False  # by fork from an interpreter that imports torch while it plans, as a user's is
    ranks: int = 2


HABITS = [
    Habit("draws_without_a_seed.py", restarts=1, spawned=False),  # the interpreter's own draws
    Habit("leaves_files_open.py", ("end",)),
    Habit("leaves_files_open.py", ("exception",), code=1),
    Habit("works_on_after_the_last_line.py"),
    Habit("gets_classes_from_children.py"),
    Habit("looks_at_itself.py", ("two words", "é'\"$(x)", "", "--lr=3", "line\nbreak"), cold=True),
    Habit("own_launcher/train.py", in_its_folder=True),
    Habit("sets_variables_only_a_new_interpreter_reads.py", by_spawn=True, spawned=False, ranks=1),
    Habit("ends_with_a_code.py", ("3",), code=1),
    Habit("ends_with_a_code.py", ("0", "at once")),
    Habit("sets_variables_and_reads_its_place.py", ("fail",), code=1, cold=True),
    Habit("starts_itself_again.py", ("a b", "--x")),
    Habit("saves_its_classes_and_leaves_its_group.py", ("--lr", "3e-2", "é", "b c")),
    Habit("own_launcher/train.py", kind="module", in_its_folder=True),
    Habit("shell.sh", ("a b", "3"), kind="program", code=1),
]


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    """A warm server of these tests' own, in a folder short enough for the name of a socket."""
    with TemporaryDirectory(dir="/tmp") as runtime, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", runtime)
        patch.delenv("PYTHONUNBUFFERED", raising=False)
        warm.start(SERVER, [], idle_s=600)
        yield
        warm.stop()


def command(kind: str, habit: Habit, script: Path, folder: Path) -> list[str]:
    program = script.stem if habit.kind == "module" else str(script)
    if kind == "torchrun":
        shape = ["--standalone", f"--nproc-per-node={habit.ranks}", *OPTIONS[habit.kind]]
        return [*PYTHON, "torch.distributed.run", *shape, program, *habit.args]
    launch = [f"launch.nproc_per_node={habit.ranks}", *STARTS[kind], f"launch.max_restarts={habit.restarts}"]
    return [
        *PYTHON,
        "launcher.cli",
        "run",
        f"{habit.kind}={program}",
        f"run_dir={folder}-run",
        *launch,
        "--",
        *habit.args,
    ]


def another_shell() -> Inherited:
    """Other limits than those of the warm server."""
    here = Inherited.of_this_process()
    limits = {**here.limits, "NOFILE": (777, here.limits["NOFILE"][1])}
    return replace(here, umask=0o027, niceness=min(19, here.niceness + 1), limits=limits)


def produced(folder: Path) -> dict[str, str]:
    """The files that the ranks wrote, without the name of the folder that each run has for itself."""
    return {
        str(path.relative_to(folder)): path.read_bytes().decode(errors="replace").replace(str(folder), "FOLDER")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.parametrize("habit", HABITS, ids=lambda h: "-".join([h.kind, Path(h.script).stem, *h.args[:1]]))
def test_a_script_ends_as_under_torchrun(habit: Habit, tmp_path: Path) -> None:
    starts = [kind for kind in STARTS if habit.spawned or kind != "spawn"]
    kinds = ["torchrun", *starts]
    runs = {}
    for kind in kinds:  # side by side: each waits for itself half of the time
        folder = tmp_path / kind / "work"
        folder.mkdir(parents=True)
        script = HERE / habit.script
        if habit.in_its_folder:
            shutil.copytree(script.parent, folder, dirs_exist_ok=True)
            script = folder / script.name
        restarts = 0 if kind == "torchrun" else habit.restarts
        environment = {**os.environ, "HABIT": "restart" * restarts, "DRAWN": str(tmp_path / "drawn.jsonl")}
        cold = habit.cold and kind == "fork"
        shell = another_shell()
        start = (
            partial(subprocess.Popen, preexec_fn=shell.take_on) if cold else partial(preloaded.Popen, shell_of=shell)
        )
        runs[kind] = start(
            command(kind, habit, script, folder),
            cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    said = {kind: [text.decode() for text in run.communicate(timeout=240)] for kind, run in runs.items()}
    codes = {kind: run.returncode for kind, run in runs.items()}
    assert codes == dict.fromkeys(kinds, habit.code), said
    outcomes = {kind: produced(tmp_path / kind / "work") for kind in kinds}
    assert outcomes["torchrun"], said["torchrun"]
    if habit.restarts:  # a second start leaves what a first one does
        outcomes["torchrun"]["distinct-1.json"] = outcomes["torchrun"]["distinct-0.json"]
    for kind in starts:
        assert outcomes[kind] == outcomes["torchrun"], (kind, said[kind])
        assert ("(launch.start=spawn)" in said[kind][1]) == habit.by_spawn
        assert "warm server is not used" not in said[kind][1]
    if (tmp_path / "drawn.jsonl").exists():
        check_drawn(tmp_path / "drawn.jsonl", runs=1 + len(starts) * (1 + habit.restarts))


def check_drawn(file: Path, *, runs: int) -> None:
    """No rank of any start of any run has drawn what another has."""
    ranks = [drawn for line in file.read_text().splitlines() for drawn in json.loads(line)]
    assert len(ranks) == 2 * runs
    for key in ranks[0]:
        assert len({json.dumps(drawn[key]) for drawn in ranks}) == len(ranks), key
