"""The `launcher` command: parses the line, hands it to one command, turns errors into messages and exit codes.

Exit codes: 0 done, 1 the job failed, 2 the input is wrong, 3 no layout fits, 130 interrupted.
Each command's module is imported only when it is called, so that `launcher plan` starts without torch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn

from launcher import __version__
from launcher.commands.first_contact import check_words
from launcher.commands.guard import guarded, wants_json
from launcher.commands.hydra_flags import CFG, INFO, config_words, shown_config, without_refused
from launcher.commands.invocation import Invocation
from launcher.commands.table import COMMANDS, CommandEntry
from launcher.commands.taken import check_taken
from launcher.console import open_streams
from launcher.errors import InputError
from launcher.fast_exit import end_process
from launcher.garbage import no_garbage_collection
from launcher.process import take_usual_signals
from launcher.schema import nearest


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _dispatch(arguments), as_json=wants_json(arguments))


def _dispatch(arguments: list[str]) -> int:
    check_words(arguments)
    name, *words = arguments or ["--help"]
    if name not in COMMANDS:
        print(_about(name), end="")
        return 0
    split = words.index("--") if "--" in words else len(words)
    parsed = _parser(name).parse_intermixed_args(without_refused(words[:split]))
    if parsed.help or parsed.schema:
        print(_explained(name, schema=parsed.schema), end="")
        return 0
    return _answer(name, parsed, rest=tuple(words[split + 1 :]))


def _answer(name: str, parsed: argparse.Namespace, *, rest: tuple[str, ...]) -> int:
    """What the command itself does, or the configuration that it would do it with."""
    entry = COMMANDS[name]
    overrides = (*config_words(parsed.config_dir), *parsed.overrides, *_flags_as_words(parsed))
    check_taken(name, overrides)
    if parsed.multirun and not entry.sweeps:
        raise InputError(f"`launcher {name}` does one thing at a time: give one value for each key, without -m")
    if parsed.cfg or parsed.info:
        print(shown_config(name, parsed, overrides), end="")
        return 0
    if entry.of_run and _is_elsewhere(parsed.overrides):
        from launcher.commands.login import followed

        return followed(name, (*parsed.overrides, *_flags_as_words(parsed)))
    with no_garbage_collection():
        run: Callable[[Invocation], int] = import_module(f"launcher.commands.{entry.module}").run
    return run(Invocation(overrides, parsed.multirun, rest))


def _is_elsewhere(words: Sequence[str]) -> bool:
    """Whether the command names a run that is on a login node."""
    from launcher.commands.named import on_login_node

    return on_login_node(words) is not None


def _about(word: str) -> str:
    """What `launcher` prints without a command; raises InputError for a word that is none."""
    from launcher.commands.help import overview

    if word in ("-h", "--help"):
        return overview()
    if word == "--version":
        return f"launcher {__version__}\n"
    without_refused([word])
    close = nearest(word, list(COMMANDS))
    hint = f"did you mean {' or '.join(close)}?" if close else f"choose one of {', '.join(COMMANDS)}"
    raise InputError(f"{word} is no command: {hint}")


def _explained(name: str, *, schema: bool) -> str:
    from launcher.commands.help import command_help
    from launcher.commands.schemas import schema_of

    return json.dumps(schema_of(name), indent=1) + "\n" if schema else command_help(name)


def _flags_as_words(parsed: argparse.Namespace) -> list[str]:
    """The flags of `logs` as its options."""
    rank, follow = getattr(parsed, "rank", None), getattr(parsed, "follow", False)
    return [*([] if rank is None else [f"rank={rank}"]), *(["follow=true"] if follow else [])]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}: see launcher {self.prog} --help")


def _parser(name: str) -> argparse.ArgumentParser:
    """The parser of one command: its words and flags may be in any order, as with Hydra."""
    entry: CommandEntry = COMMANDS[name]
    parser = _Parser(prog=name, add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("--schema", action="store_true")
    parser.add_argument("-c", "--cfg", choices=CFG)
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("-p", "--package")
    parser.add_argument("-i", "--info", nargs="?", const="all", choices=INFO)
    parser.add_argument("-cd", "--config-dir")
    if entry.module == "logs":
        parser.add_argument("--rank")
        parser.add_argument("-f", "--follow", action="store_true")
    return parser


def command() -> NoReturn:
    """Entry point of the `launcher` command: run it and end the process."""
    open_streams()
    take_usual_signals()
    end_process(main())


if __name__ == "__main__":
    command()
