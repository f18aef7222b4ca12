"""`launcher completion bash|zsh|fish`: print a completion script, which calls back for the matching words.

eval "$(launcher completion bash)"
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from launcher.commands.invocation import Invocation
from launcher.commands.table import COMMANDS, CommandEntry
from launcher.errors import InputError
from launcher.run.folder import PLAN_NAME, RUNS

BASH = """\
_launcher() {
    local IFS=$'\\n' line="${COMP_LINE:0:COMP_POINT}"
    local current="${line##* }"
    local before="${line%"$current"}"
    local words=() word
    for word in $(launcher completion words "$before" "$current" 2>/dev/null); do
        words+=("$word")
    done
    # readline splits words at '=': it expects only the text after it
    if [[ "$current" == *=* && "$COMP_WORDBREAKS" == *=* ]]; then
        words=("${words[@]#"${current%%=*}="}")
    fi
    COMPREPLY=("${words[@]}")
    [[ ${#words[@]} == 1 && "${words[0]}" == *[=/] ]] && compopt -o nospace
}
complete -o default -F _launcher launcher
"""
ZSH = """\
#compdef launcher
_launcher() {
    local current="${words[CURRENT]}" before="${(j: :)words[1,CURRENT-1]} "
    local -a found open
    found=("${(@f)$(launcher completion words "$before" "$current" 2>/dev/null)}")
    open=("${(@M)found:#*[=/]}")
    found=("${(@)found:#*[=/]}")
    (( ${#found[@]} )) && [[ -n "${found[1]}" ]] && compadd -- "${found[@]}"
    (( ${#open[@]} )) && [[ -n "${open[1]}" ]] && compadd -S '' -- "${open[@]}"
    (( ${#found[@]} + ${#open[@]} )) || _files
}
compdef _launcher launcher
"""
FISH = """\
function __launcher_words
    set -l before (string join ' ' -- (commandline -opc))
    launcher completion words "$before " (commandline -ct) 2>/dev/null
end
complete -c launcher -e
complete -c launcher -a '(__launcher_words)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
ONE_WORD = {
    "warm": ("stop", "status"), "completion": tuple(SCRIPTS), "new": ("recipe", "cluster"),
}  # fmt: skip


def run(invocation: Invocation) -> int:
    match invocation.overrides:
        case (shell,) if shell in SCRIPTS:
            print(SCRIPTS[shell], end="")
        case ("words", before, current):
            print("\n".join(candidates(before.split()[1:], current)))
        case _:
            raise InputError(f'supported shells are {", ".join(SCRIPTS)}: eval "$(launcher completion bash)"')
    return 0


def candidates(before: Sequence[str], current: str) -> list[str]:
    """Return the completions of `current` after the words `before`, by the command and the groups that they choose."""
    if not before:
        return [name for name in COMMANDS if name.startswith(current)]
    entry = COMMANDS.get(before[0])
    if entry is None or "--" in before:
        return []
    key, equals, start = current.partition("=")
    if equals:
        *typed, last = start.split(",")  # of a sweep: what is after the last comma
        stem = "".join(f"{value}," for value in typed)
        return [f"{key}={stem}{value}" for value in _values(entry, before[1:], key) if value.startswith(last)]
    words = [*ONE_WORD.get(before[0], ()), *_runs(entry, before[1:]), *_keys(entry, before)]
    return [word for word in dict.fromkeys(words) if word.startswith(current) and word != current]


def _runs(entry: CommandEntry, typed: Sequence[str]) -> Iterator[str]:
    """Run folders, newest first, where a command takes one."""
    if not entry.of_run or not RUNS.is_dir():
        return
    with os.scandir(RUNS) as found:
        folders = [one for one in found if one.is_dir() and (Path(one.path) / PLAN_NAME).is_file()]
    newest = sorted(folders, key=lambda one: -one.stat().st_mtime)
    yield from (one.path for one in newest if one.path not in typed)


def _keys(entry: CommandEntry, before: Sequence[str]) -> Iterator[str]:
    """Keys with their `=`: those of the command, and of the configuration as the words so far compose it."""
    from launcher.config.compose import choices, keys

    if before[0] == "keys":
        yield from (*choices(), *keys())
    own = (*(word.partition("=")[0] for word in entry.options), *entry.takes)
    yield from (f"{key}=" for key in own)
    if len(entry.formats) > 1:
        yield "output="
    if entry.groups:
        yield from (f"{group}=" for group in entry.groups)
        words = _composable(entry, before[1:])
        yield from (f"{key}=" for key in keys(words) if "." in key and key.partition(".")[0] in entry.groups)


def _composable(entry: CommandEntry, typed: Sequence[str]) -> list[str]:
    """Of the words so far those that choose a file of a group, one value each."""
    chosen = [word for word in typed if word.partition("=")[0] in (*entry.groups, "config_dir") and "," not in word]
    groups = {word.partition("=")[0] for word in chosen}
    return [*(word for word in entry.preset if word.partition("=")[0] not in groups), *chosen]


def _values(entry: CommandEntry, typed: Sequence[str], key: str) -> Sequence[str]:
    """What a key may be set to, where that is a list: entries of a group, words of its rule, formats, tools."""
    from launcher.config.compose import choices
    from launcher.config.reference import references

    if key == "output":
        return entry.formats
    if key == "to":
        from launcher.export.targets import names

        return names()
    if key == "plan":
        return list(_runs(COMMANDS["status"], typed))
    if key in entry.groups or (key == "cluster" and entry.module == "lint"):
        return choices([word for word in typed if word.startswith("config_dir=")]).get(key, [])
    if f"{key}=true" in entry.options:
        return ("true", "false")
    return next((found.values for found in references() if found.name == key), ())
