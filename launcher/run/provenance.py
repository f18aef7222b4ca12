"""provenance.json and code.diff: the command that started a run and its code, so that it can be repeated.

The command's words, the commit of the code that it was started in with what differed from it, and the versions of the
packages. Where there is no git, or it takes too long, the commit is not known.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher import env
from launcher.capture import capture
from launcher.files import read_json, write_json, write_text
from launcher.run.folder import RunFolder
from launcher.schema import from_plain, to_plain
from launcher.text import printable

GIT_S = 3.0
MOST_NAMED = 200
LONGEST_CHANGE = 400  # characters
_INSTALLED = re.compile(r"(?P<name>[\w.]+)-(?P<version>[^-]+)\.(dist|egg)-info")
_OID = re.compile(r"^# branch\.oid ([0-9a-f]{40,})$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Code:
    """The code of a folder. `commit`: None where it is not known; `diff`: what its files differ from it by.

    `untracked`: files that are in no commit and not in `diff`, up to MOST_NAMED.
    """

    commit: str | None = None
    diff: str = ""
    untracked: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a run was started by. `words`, `args`: of the command, before and after `--`."""

    words: tuple[str, ...]
    args: tuple[str, ...]
    work_dir: str
    python: str
    commit: str | None
    changed: bool
    untracked: tuple[str, ...] = ()
    packages: Mapping[str, str] = field(default_factory=dict)


def code_of(folder: Path) -> Code:
    """The code in a folder and above it, as git has it."""
    status = _git(folder, "status", "--porcelain=v2", "--branch", "--untracked-files=normal")
    commit = _OID.search(status)
    if commit is None:
        return Code()
    lines = status.splitlines()
    changed = any(line[:2] in ("1 ", "2 ", "u ") for line in lines)
    untracked = [line[2:] for line in lines if line.startswith("? ")]
    diff = _git(folder, "diff", "HEAD", "--no-color", "--no-ext-diff") if changed else ""
    return Code(commit=commit[1], diff=diff, untracked=tuple(untracked[:MOST_NAMED]))


def _git(folder: Path, *words: str) -> str:
    """What git says; nothing where it is not there, fails, or is too slow."""
    try:
        said = capture(("git", "-C", str(folder), *words), environment=env.environment(), timeout_s=GIT_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.out if said.code == 0 else ""


def installed_packages() -> dict[str, str]:
    """Name → version of the packages that this interpreter finds, by the names of their folders."""
    found: dict[str, str] = {}
    for place in reversed([Path(entry) for entry in sys.path if entry]):
        try:
            names = [entry.name for entry in place.iterdir()]
        except OSError:
            continue
        matches = (_INSTALLED.fullmatch(name) for name in names)
        found |= {match["name"]: match["version"] for match in matches if match}
    return dict(sorted(found.items()))


def write_provenance(folder: RunFolder, words: Sequence[str], args: Sequence[str]) -> None:
    """Note by what, and from which code, the run in a folder is started."""
    here = Path.cwd()
    code = code_of(here)
    noted = Provenance(
        words=tuple(words),
        args=tuple(args),
        work_dir=str(here),
        python=sys.executable,
        commit=code.commit,
        changed=bool(code.diff),
        untracked=code.untracked,
        packages=installed_packages(),
    )
    write_json(folder.provenance, to_plain(noted))
    if code.diff:
        write_text(folder.code_diff, code.diff)
    else:
        folder.code_diff.unlink(missing_ok=True)


def read_provenance(folder: RunFolder) -> Provenance:
    """What `write_provenance` noted; raises InputError where there is nothing, or something else."""
    data = read_json(folder.provenance, remedy="name a run that this version of the launcher started")
    return from_plain(Provenance, data, folder.provenance.name)


def differences(noted: Provenance, folder: RunFolder) -> list[str]:
    """How what is here differs from what a run was started with, in a line each."""
    code, found = code_of(Path.cwd()), []
    if noted.commit and code.commit and noted.commit != code.commit:
        found.append(f"the code was at commit {printable(noted.commit[:12])}, and is at {code.commit[:12]}")
    before = folder.code_diff.read_text(encoding="utf-8", errors="replace") if folder.code_diff.is_file() else ""
    if noted.commit and code.commit and before != code.diff:
        found.append(f"what differs from the commit is another than then: see {folder.code_diff}")
    now = installed_packages()
    changed = [
        f"{name} {old} → {now.get(name, 'gone')}" for name, old in noted.packages.items() if now.get(name) != old
    ]
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        found.append(printable(f"packages differ: {', '.join(changed[:5])}{more}", longest=LONGEST_CHANGE))
    return found
