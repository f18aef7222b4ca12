"""`launcher COMMAND --help`: what a command takes, how it answers, and two lines to copy."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping

from launcher.commands.table import COMMANDS, CommandEntry

WIDTH = 80
FLAGS = {
    "-h, --help": "this page",
    "-m, --multirun": "every combination of comma-separated values",
    "-c, --cfg job|all": "print the composed configuration and stop; Hydra has no part in it, so both are the same",
    "--resolve": "with --cfg: put the values in place of ${…}",
    "-p, --package NAME": "with --cfg: this part alone",
    "-i, --info [WHAT]": "which folders and files the configuration comes from (all, defaults, searchpath)",
    "-cd, --config-dir DIR": "a folder of configuration files of yours; as config_dir=DIR",
    "--schema": "print the JSON schema of output=json",
}
OF_CONFIGURATION = ("-c", "--resolve", "-p", "-i", "-cd")


def command_help(name: str) -> str:
    """The help of one command, at most 80 columns wide."""
    entry = COMMANDS[name]
    parts = [
        f"usage: launcher {name} {entry.usage}",
        _filled(f"{entry.help[0].upper()}{entry.help[1:]}."),
        _titled("examples", [f"  {line}\n      {meaning}" for line, meaning in entry.examples.items()]),
        _titled("keys of its own", _rows(_own_keys(entry))),
        _filled(f"formats: {_formats(entry)}"),
        _titled("flags", _rows(_flags(entry))),
        _titled("groups (GROUP=NAME takes a file; `launcher keys GROUP` explains its keys)", _rows(_groups(entry))),
        entry.notes,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def overview() -> str:
    """The help of `launcher` itself."""
    parts = [
        "usage: launcher COMMAND [overrides]",
        "Plan, place and run distributed training on NVLink clusters.",
        _titled("commands (launcher COMMAND --help explains each)", _rows({n: e.help for n, e in COMMANDS.items()})),
        _filled(
            "Overrides are Hydra's: cluster=dgx_a100_80g cluster.num_nodes=64 layout.tp=8. "
            "`launcher keys` explains every key. Exit codes: 0 done, 1 the job failed, 2 the input is wrong, "
            "3 no layout fits."
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _own_keys(entry: CommandEntry) -> dict[str, str]:
    from launcher.config.reference import references

    meanings = {key.name: (key.meaning, key.example) for key in references()}
    keys = {f"{name}={meanings[name][1] or '…'}": meanings[name][0] for name in entry.takes}
    return {**entry.options, **keys}


def _formats(entry: CommandEntry) -> str:
    if entry.formats == ("text",):
        return "text"
    others = ", ".join(f"output={name}" for name in entry.formats if name != "text")
    return f"text, or {others}: json is one document on standard output, errors too"


def _flags(entry: CommandEntry) -> dict[str, str]:
    flags = FLAGS if entry.groups else {k: v for k, v in FLAGS.items() if not k.startswith(OF_CONFIGURATION)}
    without = {*([] if entry.sweeps else ["-m, --multirun"]), *([] if "json" in entry.formats else ["--schema"])}
    return {flag: meaning for flag, meaning in flags.items() if flag not in without}


def _groups(entry: CommandEntry) -> dict[str, str]:
    from launcher.config.compose import choices

    if not entry.groups:
        return {}
    known = choices()
    return {group: ", ".join(known.get(group, ())) for group in entry.groups}


def _titled(title: str, lines: Iterable[str]) -> str:
    lines = list(lines)
    return "\n".join([f"{title}:", *lines]) if lines else ""


def _rows(meanings: Mapping[str, str]) -> list[str]:
    """Two columns; a word that is too long for the first has a line of its own."""
    first = max([len(name) for name in meanings if len(name) <= 24], default=0) + 4
    rows = []
    for name, meaning in meanings.items():
        indent = " " * first
        if len(name) + 3 > first:
            rows.append(f"  {name}")
            rows.append(textwrap.fill(meaning, WIDTH, initial_indent=indent, subsequent_indent=indent))
        else:
            rows.append(textwrap.fill(meaning, WIDTH, initial_indent=f"  {name}".ljust(first), subsequent_indent=indent,
                                      break_long_words=False, break_on_hyphens=False))  # fmt: skip
    return rows


def _filled(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)
