"""Process exit: the user's programs exit as Python does, our own skip the slow part."""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import NoReturn

from launcher import process
from launcher.process import Thread

_NATIVE_THREADS_S = 0.2  # how long the end of a rank waits for them at most
_RAN_S = 0.05  # CPU time after which a thread that is still at work has something else to do
_BUSY = ("R", "D")  # states of a thread that runs, or would if it had a core or its memory


def end_process(code: int) -> NoReturn:
    """Run threads, exit handlers and flushes as the interpreter does, but do not free every module (0.4 s with torch).

    For our own commands and recipes: open files and objects with finalizers are left as they are.
    """
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        with suppress(BrokenPipeError):  # the reader of our output has gone
            sys.stdout.flush()
            sys.stderr.flush()
    except Exception as error:
        os.write(2, f"launcher: an exit handler failed: {error!r}\n".encode())
        code = code or 1
    finally:
        os._exit(code)


def end_as_python(code: int) -> NoReturn:
    """Exit as `python SCRIPT` does, from any call depth: threads, exit handlers, finalizers, open files.

    Py_Exit is what the interpreter calls for sys.exit: https://docs.python.org/3/c-api/sys.html#c.Py_Exit
    """
    ctypes.pythonapi.Py_Exit(ctypes.c_int(code))
    os._exit(code)  # not reached: Py_Exit does not return


def wait_for_native_threads() -> None:
    """Let threads that Python does not know finish what they do, with the GIL free; for 0.2 s at most.

    One that has no core for what it has to do, on a busy machine, is waited for longer, up to STARVED_S.

    To be called last before the interpreter ends. A thread that then waits for the GIL is ended, which aborts the
    process where C++ forbids it (CPython before 3.14: https://github.com/python/cpython/issues/87135). gloo's threads
    need the GIL to release a tensor after a collective (torch 2.13): of scripts that end right after one, 6 of 160
    aborted with sys.setswitchinterval(2), none of 80 with this wait.
    """
    began, quiet = time.monotonic(), 0
    before = native = _native_threads()
    while native and quiet < 2 and _is_worth_waiting(native, before, waited_s=time.monotonic() - began):
        time.sleep(0.001)  # whoever waits for the GIL has it now
        native = _native_threads()
        quiet = 0 if any(thread.state in _BUSY for thread in native.values()) else quiet + 1


def _is_worth_waiting(now: Mapping[int, Thread], before: Mapping[int, Thread], *, waited_s: float) -> bool:
    """Whether threads may still come to an end; those that compute all the time do not."""
    if waited_s < _NATIVE_THREADS_S:
        return True
    none = Thread("", 0.0)
    starved = [one for task, one in now.items() if one.cpu_s - before.get(task, none).cpu_s < _RAN_S]
    return waited_s < process.STARVED_S and any(thread.state == "R" for thread in starved)


def _native_threads() -> dict[int, Thread]:
    known = {thread.native_id for thread in threading.enumerate()}
    return {task: thread for task, thread in process.other_threads().items() if task not in known}


def leave_to_parent() -> None:
    """Leave finalizers to the process from which this one was forked.

    Otherwise temporary folders of preloaded modules would be deleted while others use them; and torch's finalizers,
    which unregister operators, cost 25 ms per rank (torch 2.13).
    """
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
