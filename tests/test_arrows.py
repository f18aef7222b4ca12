"""Imports run one way: what each room may import, and who may touch hydra, torch and the environment."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BASE = {"errors", "units", "env", "fields", "resources", "board", "ending"}
LOWER = BASE | {"cluster", "model", "layout"}
PLANNING = LOWER | {"cost", "plan"}
ALLOWED = {
    "errors": set(),
    "units": set(),
    "env": {"errors", "units"},
    "fields": {"errors", "units"},
    "board": {"errors", "units", "env"},
    "resources": set(),
    "ending": set(),
    "cluster": BASE,
    "model": BASE,
    "layout": LOWER - {"env"},
    "cost": LOWER | {"cost"},
    "plan": PLANNING,
    "launch": PLANNING,
    "worker": LOWER | {"plan"},
    "report": PLANNING,
    "build": LOWER,
    "settings": LOWER | {"build"},
    "recompose": LOWER | {"settings"},
    "api": PLANNING | {"recompose"},
    "commands": PLANNING | {"settings", "recompose", "report", "launch", "cli", "api"},
    "cli": BASE | {"commands", "settings"},
    "__init__": {"api", "plan"},
}
WORKER_PLAN_MODULES = {"launcher.plan", "launcher.plan.record", "launcher.plan.options"}
HEAVY = {"torch", "deepspeed", "wandb", "numpy", "transformers", "safetensors", "tokenizers"}


def modules() -> list[Path]:
    return sorted((ROOT / "launcher").rglob("*.py"))


def room(path: Path) -> str:
    relative = path.relative_to(ROOT / "launcher")
    return relative.parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def imported_rooms(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("launcher.")}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_what_lies_below_it(path: Path) -> None:
    names = {r for r in imported_rooms(path) if r in ALLOWED}
    assert names <= ALLOWED[room(path)] | {room(path)}


@pytest.mark.parametrize("path", [p for p in modules() if room(p) == "worker"], ids=lambda p: p.name)
def test_a_worker_reads_only_the_plan_record(path: Path) -> None:
    planning = {name for name in imports(path) if name.startswith("launcher.plan.")}
    assert {".".join(name.split(".")[:3]) for name in planning} <= WORKER_PLAN_MODULES | {
        "launcher.plan.Plan",
        "launcher.plan.read_plan",
    }


def test_only_settings_imports_hydra() -> None:
    users = {
        str(p.relative_to(ROOT)) for p in modules() if {n.split(".")[0] for n in imports(p)} & {"hydra", "omegaconf"}
    }
    assert users == {"launcher/settings.py"}


def test_only_env_reads_the_environment() -> None:
    readers = set()
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb"):
                readers.add(str(path.relative_to(ROOT)))
    assert readers <= {"launcher/env.py"}


def test_torch_and_its_like_stay_in_worker_and_launch() -> None:
    users = {room(p) for p in modules() if {n.split(".")[0] for n in imports(p)} & HEAVY}
    assert users <= {"worker", "launch"}


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
    assert "hydra" in used
    assert not used & HEAVY


def test_a_dry_submission_starts_without_torch(tmp_path: Path) -> None:
    used = imported_by(
        "submit", "cluster=dgx_a100_80g", "model=gpt3_1b3", "train.global_batch=64", "dry_run=true", cwd=tmp_path
    )
    assert not used & HEAVY
