"""How our processes end."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from launcher import fast_exit, process

FORKED = """
import os, tempfile, weakref
from pathlib import Path
from launcher.fast_exit import end_process, leave_to_parent

folder = tempfile.TemporaryDirectory()
child = os.fork()
if child == 0:
    leave_to_parent()
    own = weakref.finalize(leave_to_parent, print, "finalized", flush=True)
    end_process(3)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), Path(folder.name).is_dir())
"""


def test_a_forked_process_finalizes_what_is_its_own_and_not_its_parents() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["finalized", "3", "True"]


def test_threads_and_exit_handlers_are_waited_for_and_a_reader_that_left_is_no_error() -> None:
    code = (
        "import atexit, sys, threading, time\n"
        "from launcher.fast_exit import end_process\n"
        "threading.Thread(target=lambda: (time.sleep(0.2), print('thread', file=sys.stderr))).start()\n"
        "atexit.register(lambda: print('handler', file=sys.stderr))\n"
        "print('into the void')\n"
        "end_process(0)\n"
    )
    ended = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    )  # fmt: skip
    assert ended.stdout is not None
    ended.stdout.close()
    assert ended.stderr is not None
    assert ended.stderr.read().split() == ["thread", "handler"]
    assert ended.wait(timeout=60) == 0


NATIVE_THREAD = """
import atexit, ctypes, os, sys
from launcher.fast_exit import end_as_python, wait_for_native_threads

if sys.argv[1] == "waits":
    atexit.register(wait_for_native_threads)
sys.setswitchinterval(60)  # this thread keeps the GIL until it sleeps
callback = ctypes.CFUNCTYPE(None)(lambda: os.write(1, b"had the GIL"))
ctypes.PyDLL(None).pthread_create(ctypes.byref(ctypes.c_ulong()), None, callback, None)
end_as_python(7)
"""


@pytest.mark.parametrize(("how", "printed"), [("waits", "had the GIL"), ("as Python", "")])
def test_a_native_thread_that_wants_the_gil_has_it_before_the_interpreter_ends(how: str, printed: str) -> None:
    command = [sys.executable, "-c", NATIVE_THREAD, how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, printed, "")


@pytest.mark.parametrize(
    ("state", "cpu_s", "waited_for"),
    [("R", 0.0, True), ("R", 0.01, True), ("R", 0.06, False), ("D", 0.0, False)],
    ids=["has no core", "has had one for a moment", "computes", "waits for a disk"],
)
def test_a_thread_that_has_no_core_is_waited_for_longer_than_one_that_computes(
    state: str, cpu_s: float, waited_for: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy machine gives gloo's threads no core for longer than the wait usually takes."""
    clock, last = [0.0], 2 * fast_exit._NATIVE_THREADS_S

    def threads() -> dict[int, process.Thread]:
        """One that is done at last, and has had a core for `cpu_s` since the first look."""
        clock[0] += 0.04
        has_begun, is_done = clock[0] > 0.05, clock[0] > last
        return {-1: process.Thread("S" if is_done else state, cpu_s * has_begun)}

    monkeypatch.setattr(fast_exit.process, "other_threads", threads)
    monkeypatch.setattr(fast_exit.time, "monotonic", lambda: clock[0])
    fast_exit.wait_for_native_threads()
    assert (clock[0] > last) == waited_for
