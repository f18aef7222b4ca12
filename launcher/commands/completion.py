"""`launcher completion bash`: print a completion script, which calls back for the matching words.

eval "$(launcher completion bash)"
"""

from __future__ import annotations

from collections.abc import Sequence

from launcher.commands.invocation import Invocation
from launcher.commands.table import COMMANDS
from launcher.errors import InputError

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
    [[ ${#words[@]} == 1 && "${words[0]}" == *= ]] && compopt -o nospace
}
complete -o default -F _launcher launcher
"""


def run(invocation: Invocation) -> int:
    match invocation.overrides:
        case ("bash",):
            print(BASH, end="")
        case ("words", before, current):
            print("\n".join(candidates(before.split()[1:], current)))
        case _:
            raise InputError('only bash is supported: eval "$(launcher completion bash)"')
    return 0


def candidates(before: Sequence[str], current: str) -> list[str]:
    """Return the completions of `current` after the words `before`: commands, keys or entries of a group."""
    from launcher.config.compose import choices, keys

    if not before:
        return [name for name in COMMANDS if name.startswith(current)]
    group, equals, start = current.partition("=")
    if equals:
        return [f"{group}={name}" for name in choices().get(group, []) if name.startswith(start)]
    return [f"{key}=" for key in [*choices(), *keys()] if key.startswith(current) and key != current]
