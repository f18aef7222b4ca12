"""The flags that Hydra users know: those that show or place the configuration, and why others are not here."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from launcher.commands.table import COMMANDS
from launcher.errors import InputError

CFG = ("job", "all", "hydra")
INFO = ("all", "defaults", "searchpath")
PRIMARY = (
    "the primary configuration is the launcher's own, and names a file for each group: choose files by group, as "
    "cluster=NAME, from a configs/ folder of yours where you work, or from --config-dir DIR"
)
REFUSED = {
    "--config-name": PRIMARY,
    "-cn": PRIMARY,
    "--config-path": PRIMARY,
    "-cp": PRIMARY,
    "--hydra-help": "Hydra composes files here and nothing else: `launcher COMMAND --help` has every flag, "
    "`launcher keys` every key",
    "--run": "a job runs with `launcher run`",
    "-r": "a job runs with `launcher run`",
    "--shell-completion": "completion is a command: launcher completion bash|zsh|fish",
    "-sc": "completion is a command: launcher completion bash|zsh|fish",
    "--experimental-rerun": "a run goes on with the same run_dir=, and is repeated with plan=RUN",
}
NO_HYDRA = (
    "Hydra composes files here and has no keys of its own: a run's folder is run_dir=, jobs are started by "
    "`launcher run` and `launcher submit`, logs are in the run folder"
)


def without_refused(words: Sequence[str]) -> list[str]:
    """The words, unless one is a flag of Hydra's that means nothing here, or sets a key of Hydra's."""
    problems = [f"{flag}: {REFUSED[flag]}" for word in words if (flag := word.partition("=")[0]) in REFUSED]
    problems += [
        f"{word}: {NO_HYDRA}" for word in words if "=" in word and word.lstrip("+~").startswith(("hydra.", "hydra/"))
    ]
    if problems:
        raise InputError(problems)
    return list(words)


def config_words(folder: str | None) -> tuple[str, ...]:
    """--config-dir as an override."""
    return () if folder is None else (f"config_dir={folder}",)


def shown_config(name: str, parsed: argparse.Namespace, overrides: Sequence[str]) -> str:
    """What --cfg or --info prints for a command; raises InputError for one that composes no configuration."""
    from launcher.config.compose import config_text

    entry = COMMANDS[name]
    if not entry.groups:
        raise InputError(f"`launcher {name}` composes no configuration: --cfg and --info are for `launcher plan`")
    chosen = {word.partition("=")[0] for word in overrides}
    words = [*(word for word in entry.preset if word.partition("=")[0] not in chosen), *overrides]
    if parsed.cfg == "hydra":
        raise InputError(f"--cfg hydra: {NO_HYDRA}")
    if parsed.cfg:
        return config_text(words, resolve=parsed.resolve, package=parsed.package)
    return _sources(words, parsed.info)


def _sources(words: Sequence[str], what: str) -> str:
    """Folders in their order, and the file that each group takes."""
    from launcher.config.compose import sources

    found = sources(words)
    lines = []
    if what in ("all", "searchpath"):
        lines += ["folders, the first that has a file wins:", *(f"  {folder}" for folder in found.folders)]
    if what in ("all", "defaults"):
        lines += [
            "files, in the order in which they are read:",
            *(f"  {_short(f, found.folders)}" for f in found.files),
        ]
        lines += [f"note: {note}" for note in found.notes]
    return "\n".join(lines) + "\n"


def _short(file: Path, folders: Sequence[Path]) -> str:
    """A file by its group and name, with the folder that it is in."""
    inside = next((folder for folder in folders if file.is_relative_to(folder)), None)
    return f"{file.relative_to(inside).with_suffix('')}  ({file})" if inside else str(file)
