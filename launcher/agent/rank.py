"""Inside a rank: run the user's program as __main__, and end as Python does.

`python -P -m launcher.agent.rank KIND PROGRAM ARGS` is what `launch.start=spawn` starts; a forked rank calls `run`.
"""

from __future__ import annotations

import atexit
import faulthandler
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from launcher import process
from launcher.agent import main_module
from launcher.agent.group_ends import wait_for_threads_of_groups
from launcher.fast_exit import end_as_python, end_process, wait_for_native_threads
from launcher.run.heartbeat import Heartbeats

# The program of a rank: one of our recipes, or the user's script, module (as `python -m`) or program.
RECIPE, SCRIPT, MODULE, PROGRAM = "recipe", "script", "module", "program"
# Dumps the stacks of all threads into the rank's log. A real-time signal: NCCL and scripts use USR1 and USR2.
STACKS_SIGNAL = signal.SIGRTMAX - 3
INTERRUPTED = 130


def run(kind: str, program: str, args: Sequence[str]) -> NoReturn:
    """Run a script or module in this process as __main__ and end the process with its exit code."""
    faulthandler.enable()
    faulthandler.register(STACKS_SIGNAL, all_threads=True, chain=False)
    if kind == RECIPE:
        end_process(_exit_code_of(kind, program, args))
    atexit.register(wait_for_native_threads)  # first here, so after what the program registers
    code = _exit_code_of(kind, program, args)
    end_as_python(code)


def _exit_code_of(kind: str, program: str, args: Sequence[str]) -> int:
    watched = Heartbeats.of_this_rank()
    if watched:
        watched[0].mark_script(watched[1])
    try:
        main_module.execute(program, args, as_module=kind == MODULE)
        return 0
    except SystemExit as error:
        code = _exit_code(error.code)
        if watched and code:  # now: its peers notice before its process has ended
            watched[0].mark_failed(watched[1])
        return code
    except BaseException as error:
        if watched:
            watched[0].mark_failed(watched[1])
        _show(error)
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


def _show(error: BaseException) -> None:
    """Report an uncaught exception as Python does."""
    error.with_traceback(main_module.from_program(error.__traceback__))
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
    sys.excepthook(type(error), error, error.__traceback__)


def _exit_code(code: object) -> int:
    """Return the exit code for the argument of sys.exit, as Python does."""
    if code is None or isinstance(code, int):
        return int(code or 0) & 0xFF
    print(code, file=sys.stderr)
    return 1


def main(kind: str, program: str, *args: str) -> NoReturn:
    wait_for_threads_of_groups()
    process.set_command_line(main_module.command_line(program, args, as_module=kind == MODULE))
    run(kind, program, args)


if __name__ == "__main__":
    main(*sys.argv[1:])
