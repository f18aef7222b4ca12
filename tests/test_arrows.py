"""Imports run one way: what each room may import, and who may touch hydra, torch and the environment."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

from launcher.run.folder import create_run_folder
from launcher.run.owner import claim, release, this_process

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "launcher"
BASE = {"errors", "schema", "files", "units", "env", "console", "resources", "process", "fast_exit", "secret"}
BASE |= {"text", "capture", "garbage"}
VALUES = BASE | {"cluster", "model", "stacks"}
LAID_OUT = VALUES | {"layout"}
PLANNED = LAID_OUT | {"cost", "planner"}
CONFIGURED = PLANNED | {"config"}
AGENT = {"run", "rendezvous", "agent"}
PLACES = {"local", "slurm", "ssh"}
ALLOWED = {
    "errors": set(),
    "units": set(),
    "secret": set(),
    "capture": set(),
    "text": {"errors"},
    "console": {"env", "text"},
    "files": {"errors"},
    "resources": set(),
    "schema": {"errors", "text"},
    "process": {"errors"},
    "fast_exit": {"process"},
    "garbage": set(),
    "env": {"errors", "units", "text"},
    "cluster": BASE,
    "model": BASE,
    "stacks": VALUES,
    "layout": VALUES,
    "cost": LAID_OUT,
    "planner": LAID_OUT | {"cost"},
    "config": PLANNED | {"agent", "slurm", "ssh"},
    "run": BASE,
    "rendezvous": BASE | {"run"},
    "agent": PLANNED | {"run", "rendezvous"},
    "local": CONFIGURED | AGENT,
    "slurm": PLANNED | AGENT | {"preflight"},
    "ssh": PLANNED | AGENT | {"preflight"},
    "preflight": PLANNED | {"run"},
    "lint": VALUES,
    "faststart": CONFIGURED | AGENT,
    "worker": LAID_OUT | {"planner", "run"},
    "report": CONFIGURED | {"run"},
    "export": CONFIGURED | {"run", "lint"},
    "api": CONFIGURED | {"run", "export", "report"},
    "commands": CONFIGURED | AGENT | PLACES | {"report", "export", "preflight", "lint", "faststart", "api"},
    "cli": BASE | {"commands", "config"},
    "__init__": {"api", "errors"},
}
HEAVY = {"torch", "deepspeed", "wandb", "numpy", "transformers", "safetensors", "tokenizers"}
MAY_IMPORT_TORCH = {"worker", "rendezvous", "agent"}
LARGEST_ROOM = 0.20  # of the code
TWIN_ROOMS = PLACES  # rooms that share file names and class names on purpose
GENERIC = {"__init__.py", "__main__.py"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(path.read_text())))


@cache
def imports(path: Path) -> frozenset[str]:
    found: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def imported_rooms(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("launcher.")} & set(ALLOWED)


def imported_files(path: Path) -> set[Path]:
    """Files of the package that a file imports."""
    found = set()
    for name in imports(path):
        file = ROOT / (name.replace(".", "/") + ".py")
        if name.startswith("launcher.") and file.exists():
            found.add(file)
    return found


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Nodes that cannot be put in order; empty where there is no circle."""
    left = {name: set(targets) for name, targets in arrows.items()}
    while free := [name for name, targets in left.items() if not targets & set(left)]:
        for name in free:
            del left[name]
    return sorted(left)


def test_every_room_has_its_arrows() -> None:
    assert {room(path) for path in modules()} <= set(ALLOWED)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_what_lies_below_it(path: Path) -> None:
    assert imported_rooms(path) <= ALLOWED[room(path)] | {room(path)}


def test_rooms_make_no_circle() -> None:
    arrows: dict[str, set[str]] = defaultdict(set)
    for path in modules():
        arrows[room(path)] |= imported_rooms(path) - {room(path)}
    assert circle(arrows) == []


def test_files_make_no_circle() -> None:
    files = {path: imported_files(path) - {path} for path in modules()}
    arrows = {str(path.relative_to(ROOT)): {str(t.relative_to(ROOT)) for t in found} for path, found in files.items()}
    assert circle(arrows) == []


def test_no_room_holds_over_a_fifth_of_the_code() -> None:
    lines = Counter[str]()
    for path in modules():
        lines[room(path)] += len(path.read_text().splitlines())
    large = {name: count for name, count in lines.items() if count > LARGEST_ROOM * lines.total()}
    assert large == {}


def public_classes(path: Path) -> Iterable[str]:
    tree = nodes(path)[0]
    assert isinstance(tree, ast.Module)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name


def test_no_two_public_classes_share_a_name() -> None:
    owners: dict[str, list[str]] = defaultdict(list)
    for path in modules():
        for name in public_classes(path):
            owners[name].append(str(path.relative_to(PACKAGE)))
    twins = {name: files for name, files in owners.items() if len(files) > 1}
    assert twins == {}


def test_no_file_name_is_in_more_than_two_rooms() -> None:
    owners: dict[str, set[str]] = defaultdict(set)
    for path in modules():
        if path.name not in GENERIC and room(path) not in TWIN_ROOMS:
            owners[path.name].add(room(path))
    assert {name: rooms for name, rooms in owners.items() if len(rooms) > 2} == {}


def test_the_worker_reads_no_more_of_the_planner_than_the_plan() -> None:
    files = ("record", "options", "deepspeed_config")
    allowed = {"launcher.planner", *(f"launcher.planner.{file}" for file in files)}
    for path in modules():
        if room(path) == "worker":
            read = {name for name in imports(path) if name.startswith("launcher.planner.")}
            read = {name for name in read if (ROOT / (name.replace(".", "/") + ".py")).exists()}
            assert read <= allowed, path


def test_only_config_imports_hydra() -> None:
    users = {room(p) for p in modules() if {n.split(".")[0] for n in imports(p)} & {"hydra", "omegaconf"}}
    assert users == {"config"}


def test_nothing_private_of_hydra_is_used() -> None:
    private = {n for p in modules() for n in imports(p) if n.startswith("hydra") and "._" in n}
    assert private == set()


def test_only_env_reads_the_environment() -> None:
    readers = set()
    for path in modules():
        for node in nodes(path):
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb"):
                readers.add(str(path.relative_to(ROOT)))
    assert readers <= {"launcher/env.py"}


def test_torch_and_its_like_stay_where_ranks_are_started() -> None:
    users = {room(p) for p in modules() if {n.split(".")[0] for n in imports(p)} & HEAVY}
    assert users <= MAY_IMPORT_TORCH


def imported_by(*arguments: str, cwd: Path) -> set[str]:
    code = (
        "import json, sys\n"
        "from launcher.cli import main\n"
        f"code = main({list(arguments)!r})\n"
        "print(json.dumps([code, sorted({m.split('.')[0] for m in sys.modules})]), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, timeout=120)
    code_and_modules = json.loads(done.stderr.splitlines()[-1])
    assert code_and_modules[0] == 0, done.stderr
    return set(code_and_modules[1])


def test_planning_starts_without_torch(tmp_path: Path) -> None:
    used = imported_by("plan", "cluster=dgx_a100_80g", "cluster.num_nodes=128", "model=gpt3_175b",
                       "train.global_batch=1536", cwd=tmp_path)  # fmt: skip
    assert "launcher" in used
    assert not used & HEAVY


def test_a_dry_submission_starts_without_torch(tmp_path: Path) -> None:
    used = imported_by(
        "submit", "cluster=dgx_a100_80g", "model=gpt3_1b3", "train.global_batch=64", "dry_run=true", cwd=tmp_path
    )
    assert not used & HEAVY


@pytest.mark.parametrize("command", ["status", "logs", "cancel"])
def test_a_look_at_a_run_starts_without_planner_and_hydra(tmp_path: Path, command: str) -> None:
    folder = create_run_folder(tmp_path / "run")
    claim(folder, this_process())
    release(folder, this_process(), ended="done")
    folder.rank_log(0).write_text("hello\n")
    code = (
        "import sys\nfrom launcher.cli import main\n"
        f"main([{command!r}, {str(folder.path)!r}])\n"
        "print(*(name for name in sys.modules if name.startswith(('launcher.planner', 'launcher.config', 'hydra'))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout.splitlines()[-1] == "", done.stdout + done.stderr
    assert len(done.stdout.splitlines()) > 1


def test_a_run_imports_little_before_it_asks_the_warm_server(tmp_path: Path) -> None:
    """Those modules that only a cold start needs are imported when there is no server."""
    code = (
        "import sys\nimport launcher.cli\nimport launcher.commands.run\n"
        "print(*(name for name in sys.modules if name.startswith(\n"
        "    ('launcher.planner', 'launcher.config', 'launcher.agent', 'launcher.local', 'hydra', 'torch'))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout == "\n", done.stdout + done.stderr


def test_any_selection_of_test_folders_can_be_collected() -> None:
    """Modules of tests are imported by their names alone: each name is there once, and no conftest.py is imported."""
    files = [path for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert {name: n for name, n in Counter(path.stem for path in files).items() if n > 1} == {}
    assert [path for path in files if "conftest" in imports(path)] == []
