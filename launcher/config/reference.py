"""Reference of all keys, generated from the classes that own them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from launcher.config.overrides import every_key, places_of
from launcher.errors import InputError
from launcher.planner.options import RECIPES, OwnRecipeOptions, RecipeOptions
from launcher.schema import REQUIRED, Entry, names, nearest, rule_text, walk

PREFACE = """\
# Configuration files and keys

A group is a folder here: `cluster=dgx_a100_80g` takes `cluster/dgx_a100_80g.yaml`. `config.yaml` names the file that
each group uses by default. A file states only what differs from the defaults below, every number with its source.
A `configs/` folder in your working directory is searched first; its files win over ours of the same name. Its
`config.yaml` is not read: files of that name are common.

`launcher keys WORD` finds keys. A key that is in none of these tables is refused, in a file as in an override.
This page is the output of `launcher keys output=markdown`; a test compares the two.
"""


TABLE = "| key | default | takes | meaning |\n|---|---|---|---|\n"


@dataclass(frozen=True)
class KeyReference:
    """One key: `takes` is its rule in words; `only` is the choice that has the key, if not all do."""

    name: str
    default: Any
    takes: str
    unit: str | None
    meaning: str
    source: str | None
    only: str | None
    example: str | None
    values: tuple[str, ...]  # what may be given, where that is a list of words


def references() -> list[KeyReference]:
    """Return every key, group by group; the commands' own keys come last."""
    common = set(names(RecipeOptions, "recipe"))
    found = [
        _reference(name, entry, " or ".join(f"launch={place}" for place in places_of(name)) or None)
        for name, entry in every_key().items()
    ]
    found += [
        _reference(name, entry, f"recipe={recipe}")
        for recipe, cls in {**RECIPES, "one of your own": OwnRecipeOptions}.items()
        for name, entry in walk(cls, "recipe")
        if name not in common
    ]
    order = [*dict.fromkeys(_group(key.name) for key in found if _group(key.name)), ""]
    return sorted(found, key=lambda key: order.index(_group(key.name)))


def _group(name: str) -> str:
    return name.partition(".")[0] if "." in name else ""


def _reference(name: str, entry: Entry, only: str | None) -> KeyReference:
    rule = entry.key
    takes = rule_text(entry).removeprefix("must be ").removeprefix("must give ").removeprefix("is not one of ")
    words = ("true", "false") if entry.kind is bool else tuple(rule.choices or ())
    values = (*words, *(["auto"] if entry.takes_auto else []))
    return KeyReference(name, rule.default, takes, rule.unit, rule.meaning, rule.source, only, rule.example, values)


def matching(word: str) -> list[KeyReference]:
    """Return the keys that begin with a word, else those with it in name or meaning; raises InputError if none does."""
    every = references()
    begin = [key for key in every if key.name == word or key.name.startswith(f"{word.removesuffix('.')}.")]
    found = begin or [key for key in every if word.lower() in f"{key.name} {key.meaning}".lower()]
    if not found:
        close = nearest(word, [key.name for key in every])
        hint = f"did you mean {' or '.join(close)}?" if close else "`launcher keys` shows all"
        raise InputError(f"no key has {word} in its name or meaning: {hint}")
    return found


def as_data(keys: Sequence[KeyReference]) -> list[dict[str, Any]]:
    """Return the keys as plain data, with `required` instead of a default."""
    return [{**asdict(key), "default": None, "required": True} if key.default is REQUIRED
            else {**asdict(key), "required": False} for key in keys]  # fmt: skip


def as_text(keys: Sequence[KeyReference]) -> str:
    """Return two lines per key: allowed values and meaning."""
    lines = []
    for key in keys:
        given = "required" if key.default is REQUIRED else f"= {_written(key.default)}"
        lines.append(f"{key.name} {given}   {_rule(key)}")
        lines.append(f"    {_sentence(key)}")
    return "\n".join(lines)


def as_markdown() -> str:
    """Return the page of all keys."""
    parts = [PREFACE]
    groups: dict[str, list[KeyReference]] = {}
    for key in references():
        groups.setdefault(_group(key.name), []).append(key)
    for group, keys in groups.items():
        parts.append(f"\n## {group or 'Keys of the command itself'}\n\n{TABLE}")
        for key in keys:
            default = "–" if key.default is REQUIRED else f"`{_written(key.default)}`"
            cells = [f"`{key.name}`", default, _rule(key), _sentence(key)]
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(parts)


def _rule(key: KeyReference) -> str:
    return f"{key.takes} ({key.unit})" if key.unit and key.unit != "1" else key.takes


def _sentence(key: KeyReference) -> str:
    source = f" [{key.source}]" if key.source else ""
    return f"{key.meaning}{source}" + (f" ({key.only} only)" if key.only else "")


def _written(value: Any) -> str:
    """Format a default as in an override."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_written(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_written, value)) + "]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
