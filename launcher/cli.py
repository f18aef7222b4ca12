"""The `launcher` command: parse the line, dispatch to one command, turn errors into messages and exit codes.

Exit codes: 0 done, 1 the job failed, 2 the input is wrong, 3 no layout fits, 130 interrupted.
A command's module is imported only when it is called, so `launcher plan` starts without torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn

from launcher import __version__
from launcher.commands.first_contact import check_words
from launcher.commands.guard import guarded
from launcher.commands.invocation import Invocation
from launcher.commands.table import COMMANDS
from launcher.console import open_streams
from launcher.fast_exit import end_process
from launcher.garbage import no_garbage_collection


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _dispatch(arguments))


def _dispatch(arguments: list[str]) -> int:
    check_words(arguments)
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parsed = _parser().parse_args(_flags_first(arguments[:split]))
    if parsed.command is None:
        _parser().print_help()
        return 0
    invocation = Invocation(
        (*parsed.overrides, *_flags_as_words(parsed)), parsed.multirun, tuple(arguments[split + 1 :])
    )
    if parsed.cfg:
        from launcher.config.compose import config_text

        print(config_text(invocation.overrides), end="")
        return 0
    with no_garbage_collection():
        run: Callable[[Invocation], int] = import_module(f"launcher.commands.{COMMANDS[parsed.command].module}").run
    return run(invocation)


def _flags_as_words(parsed: argparse.Namespace) -> list[str]:
    """Return the flags of `logs` as `key=value` words."""
    rank, follow = getattr(parsed, "rank", None), getattr(parsed, "follow", False)
    return [*([] if rank is None else [f"rank={rank}"]), *(["follow=true"] if follow else [])]


def _flags_first(arguments: list[str]) -> list[str]:
    """Move `-m` to the front: as in Hydra it may be anywhere among the overrides, but argparse expects it first."""
    flags = [word for word in arguments[1:] if word in ("-m", "--multirun")]
    return arguments[:1] + flags + [word for word in arguments[1:] if word not in flags]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launcher",
        description="Plan, place and run distributed training on NVLink clusters.",
        epilog="Overrides are Hydra's: cluster=dgx_a100_80g cluster.num_nodes=64 model=gpt3_175b layout.tp=8",
    )
    parser.add_argument(
        "--version", action="version", version=f"launcher {__version__}", help="print the version and stop"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            usage=f"launcher {name} [-m] [--cfg job] {command.usage}",
            epilog=command.keys or None,
            formatter_class=_GroupsHelp,
        )
        sub.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="key=value, as Hydra takes them")
        sub.add_argument("-m", "--multirun", action="store_true", help="every combination of comma-separated values")
        if name == "logs":
            sub.add_argument("--rank", metavar="N", help="only this rank; same as rank=N")
            sub.add_argument("-f", "--follow", action="store_true", help="until the run ends; same as follow=true")
        sub.add_argument("--cfg", choices=["job"], help="print the composed configuration and stop")
    return parser


class _GroupsHelp(argparse.RawDescriptionHelpFormatter):
    """Help that ends with the configuration groups and their entries, read only when help is shown."""

    def format_help(self) -> str:
        from launcher.config.compose import choices

        groups = "\n".join(f"  {group}: {', '.join(names)}" for group, names in choices().items())
        return f"{super().format_help()}\nconfiguration groups:\n{groups}\n"


def command() -> NoReturn:
    """Entry point of the `launcher` command: run it and end the process."""
    open_streams()
    end_process(main())


if __name__ == "__main__":
    command()
