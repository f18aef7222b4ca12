"""Habit: threads, exit handlers and finalizers that work on after the script's last line, with its own classes."""

import atexit
import os
import pickle
import threading
import time
import weakref
from pathlib import Path

rank = os.environ["RANK"]


class Result:
    """A class of the script's."""

    def __init__(self, what: str) -> None:
        self.what = what


def note(what: str) -> None:
    with Path(f"notes-{rank}.txt").open("a") as out:
        out.write(f"{what} {pickle.loads(pickle.dumps(Result(what))).what} {__name__}\n")


def later() -> None:
    time.sleep(0.3)
    note("thread")


class Closes:
    """Something with a finalizer."""


closes = Closes()
weakref.finalize(closes, note, "finalizer")
atexit.register(note, "hook")
threading.Thread(target=later).start()
note("last line")
