"""`launcher new recipe|cluster NAME`: files to start from, where you work."""

from __future__ import annotations

import json
from pathlib import Path

from launcher.commands.invocation import Invocation
from launcher.commands.named import options, says_json
from launcher.config.compose import choices
from launcher.console import say
from launcher.errors import InputError
from launcher.files import write_text
from launcher.resources import NAME, resource

KINDS = ("recipe", "cluster")
TEMPLATES = "templates"


def run(invocation: Invocation) -> int:
    """Write the files and print their names; refuses to replace any."""
    kind, name, words = _named(invocation.overrides)
    as_json = says_json(options(words, allowed=["output"]))
    texts = _texts(kind, name)
    there = [path for path in texts if path.exists()]
    if there or name in choices().get(kind, ()):
        found = there[0] if there else f"a {kind} of that name"
        raise InputError(f"{found} is there already: choose another name")
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    if as_json:
        print(json.dumps({"files": [str(path) for path in texts]}))
        return 0
    print("\n".join(map(str, texts)))
    command = f"launcher run recipe={name}" if kind == "recipe" else f"launcher plan cluster={name}"
    say(f"change them, then: {command}")
    return 0


def _named(words: tuple[str, ...]) -> tuple[str, str, list[str]]:
    named = [word for word in words if "=" not in word]
    if len(named) != 2 or named[0] not in KINDS:
        raise InputError("`launcher new` takes a kind and a name: launcher new recipe probe, launcher new cluster site")
    if not NAME.fullmatch(named[1]):
        raise InputError(f"{named[1]} is no name: use letters, digits and _, beginning with a letter")
    return named[0], named[1], [word for word in words if "=" in word]


def _texts(kind: str, name: str) -> dict[Path, str]:
    """The files of a kind, by where they go."""
    folder = resource("recipes") / TEMPLATES
    files = {Path("configs") / kind / f"{name}.yaml": folder / f"{kind}.yaml.txt"}
    if kind == "recipe":
        files[Path("recipes") / f"{name}.py"] = folder / "recipe.py.txt"
    return {path: template.read_text(encoding="utf-8").replace("NAME", name) for path, template in files.items()}
