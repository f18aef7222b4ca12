"""A program in a rank is `__main__` as `python PROGRAM` makes it: the same words, the same code, the same end."""

from __future__ import annotations

import compileall
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = '''"""Says who it is."""
import atexit, sys, __main__
from helper import VALUE
class Held:
    def __del__(self): print("finalized")
held = Held()
atexit.register(print, "hook")
names = sorted(n for n in vars(__main__) if n.startswith("__"))
print(__name__, __doc__, __package__, type(__spec__).__name__, __spec__ and (__spec__.name, __spec__.origin), __file__)
print(names, type(__loader__).__name__, __builtins__ is sys.modules["builtins"], sys.modules["__main__"] is __main__)
print(sys.argv, sys.path[0], sys.orig_argv[1:] if "-m" not in sys.argv else None, VALUE)
if "raise" in sys.argv:
    raise ValueError("on purpose")
sys.exit("a message" if "message" in sys.argv else 7 if "seven" in sys.argv else None)
'''


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with the program as a script, a folder, an archive, compiled and as a module of a package."""
    for folder in ("app", "pkg"):
        (tmp_path / folder).mkdir()
    for name in ("train.py", "app/__main__.py", "pkg/train.py"):
        (tmp_path / name).write_text(PROGRAM)
    for name in ("helper.py", "app/helper.py"):
        (tmp_path / name).write_text("VALUE = 5\n")
    (tmp_path / "pkg" / "__init__.py").write_text("print('the package')\n")
    (tmp_path / "pkg" / "__main__.py").write_text(PROGRAM)
    (tmp_path / "broken.py").write_text("a = (\n")
    (tmp_path / "latin.py").write_bytes("# -*- coding: latin-1 -*-\nprint(ascii('\xe9'))\n".encode("latin-1"))
    shutil.make_archive(str(tmp_path / "archive"), "zip", tmp_path / "app")
    compileall.compile_file(tmp_path / "train.py", legacy=True, quiet=2)
    (tmp_path / "link.py").symlink_to(tmp_path / "app" / "__main__.py")
    return tmp_path


def ran(home: Path, *command: str) -> tuple[int, str, list[str]]:
    done = subprocess.run([sys.executable, *command], cwd=home, capture_output=True, text=True, timeout=120)
    errors = done.stderr.splitlines()
    frozen = [i for i, line in enumerate(errors) if "<frozen runpy>" in line]
    return done.returncode, done.stdout, [line for i, line in enumerate(errors) if i not in frozen]


@pytest.mark.parametrize("words", [["a b", ""], ["raise"], ["seven"], ["message"]], ids=lambda w: w[0])
@pytest.mark.parametrize("target", ["train.py", "app", "archive.zip", "train.pyc", "link.py"])
def test_a_file_runs_as_python_runs_it(home: Path, target: str, words: list[str]) -> None:
    path = str(home / target)
    assert ran(home, "-P", "-u", "-m", "launcher.agent.rank", "script", path, *words) == ran(home, "-u", path, *words)


@pytest.mark.parametrize("target", ["pkg.train", "pkg", "no_such_module", "pkg.no_such"])
def test_a_module_runs_as_python_m_runs_it(home: Path, target: str) -> None:
    ours = ran(home, "-P", "-u", "-m", "launcher.agent.rank", "module", target, "raise")
    assert ours == ran(home, "-u", "-m", target, "raise")


@pytest.mark.parametrize("target", ["broken.py", "latin.py", "missing.py"])
def test_sources_that_python_reads_in_its_own_way(home: Path, target: str) -> None:
    path = str(home / target)
    ours, theirs = ran(home, "-P", "-u", "-m", "launcher.agent.rank", "script", path), ran(home, "-u", path)
    if target == "missing.py":  # the interpreter says so itself, with code 2
        assert ours[0] == 1
        assert "FileNotFoundError" in ours[2][-1]
    else:
        assert ours == theirs


def test_a_recipe_of_ours_ends_without_freeing_every_module(home: Path) -> None:
    _, out, _ = ran(home, "-P", "-u", "-m", "launcher.agent.rank", "recipe", str(home / "train.py"))
    assert out.splitlines()[-1] == "hook"
