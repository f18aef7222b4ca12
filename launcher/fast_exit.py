"""Process exit: the user's programs exit as Python does, our own skip the slow part."""

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


def leave_to_parent() -> None:
    """Leave finalizers to the process from which this one was forked.

    Otherwise temporary folders of preloaded modules would be deleted while others use them; and torch's finalizers,
    which unregister operators, cost 25 ms per rank (torch 2.13).
    """
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
