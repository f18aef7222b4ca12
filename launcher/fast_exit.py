"""How our processes end: the user's as Python ends, our own without the slow part of that."""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
import threading
import weakref
from contextlib import suppress
from typing import NoReturn


def end_process(code: int) -> NoReturn:
    """Threads, exit handlers, buffers as the interpreter would, but no freeing of every module (0.4 s with torch).

    For our own commands and recipes: a file that is still open, or an object with a finalizer, is left as it is.
    """
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        with suppress(BrokenPipeError):  # the reader of our output went away
            sys.stdout.flush()
            sys.stderr.flush()
    except Exception as error:
        os.write(2, f"launcher: an exit handler failed: {error!r}\n".encode())
        code = code or 1
    finally:
        os._exit(code)


def end_as_python(code: int) -> NoReturn:
    """End as `python SCRIPT` ends, from within any depth of calls: threads, exit handlers, finalizers, open files.

    Py_Exit is what the interpreter itself calls for sys.exit: https://docs.python.org/3/c-api/sys.html#c.Py_Exit
    """
    ctypes.pythonapi.Py_Exit(ctypes.c_int(code))
    os._exit(code)  # not reached: Py_Exit does not return


def leave_to_parent() -> None:
    """Leave the finalizers of the process that this one was forked from to that process.

    Temporary folders of preloaded modules would go while others use them; and torch's own finalizers, which undo the
    registration of operators, cost 25 ms a rank (torch 2.13).
    """
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
