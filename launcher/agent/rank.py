"""Inside a rank: run the user's script as __main__, and end as Python would, without the slow teardown.

`python -m launcher.agent.rank SCRIPT ARGS` is what `launch.start=spawn` starts; a forked rank calls `run` directly.
"""

from __future__ import annotations

import faulthandler
import runpy
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from launcher.fast_exit import end_process
from launcher.run.heartbeat import Heartbeats

# Dumps the stacks of all threads into the rank's log. A real-time signal: NCCL and scripts use USR1 and USR2.
STACKS_SIGNAL = signal.SIGRTMAX - 3
INTERRUPTED = 130


def run(script: Path, args: Sequence[str]) -> NoReturn:
    """Run `script` in this process as __main__ and end the process with its exit code."""
    faulthandler.enable()
    faulthandler.register(STACKS_SIGNAL, all_threads=True, chain=False)
    code = _run_script(str(script), args)
    end_process(code)


def _run_script(script: str, args: Sequence[str]) -> int:
    watched = Heartbeats.of_this_rank()
    if watched:
        watched[0].mark_script(watched[1])
    sys.argv = [script, *args]
    sys.path[0] = str(Path(script).resolve().parent)
    try:
        runpy.run_path(script, run_name="__main__")
        return 0
    except SystemExit as error:
        code = _exit_code(error.code)
        if watched and code:  # now: its peers notice before its process has ended
            watched[0].mark_failed(watched[1])
        return code
    except BaseException as error:
        if watched:
            watched[0].mark_failed(watched[1])
        error.with_traceback(_from_script(error.__traceback__, script))
        sys.excepthook(type(error), error, error.__traceback__)
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


def _exit_code(code: object) -> int:
    """What Python makes of the argument of sys.exit."""
    if code is None or isinstance(code, int):
        return int(code or 0) & 0xFF
    print(code, file=sys.stderr)
    return 1


def _from_script(traceback: TracebackType | None, script: str) -> TracebackType | None:
    """The traceback without our own frames and runpy's; None where the script did not begin (a syntax error)."""
    frame = traceback
    while frame and frame.tb_frame.f_code.co_filename != script:
        frame = frame.tb_next
    return frame


if __name__ == "__main__":
    sys.argv.pop(0)
    run(Path(sys.argv[0]), sys.argv[1:])
