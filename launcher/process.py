"""Processes as Linux has them: trees, threads, death signals. Everything here goes by process id."""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

_SAME_START_S = 0.02  # start times come in ticks of 10 ms
DEEPEST = 64  # processes below each other; what is read while they come and go could be a circle
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36  # <linux/prctl.h>
_ARG_START, _ARG_END = 45, 46  # of _stat's fields: where the command line is in memory (proc_pid_stat(5))


def die_with_parent(parent_pid: int, number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when its parent ends, also if the parent is gone already."""
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), number)


def set_command_line(argv: Sequence[str]) -> None:
    """What `ps` shows of this process, cut to the length of the command line that it was started with."""
    fields = _stat(os.getpid())
    start, end = (int(fields[_ARG_START]), int(fields[_ARG_END])) if fields else (0, 0)
    if not 0 < start < end:  # a kernel that does not say where it is
        return
    text = b"".join(os.fsencode(word) + b"\0" for word in argv)[: end - start - 1]
    ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)
    name = ctypes.create_string_buffer(os.fsencode(Path(argv[0]).name)[:15])
    _prctl(_PR_SET_NAME, ctypes.addressof(name))


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that none escapes `descendants`."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def descendants(pid: int) -> list[int]:
    """Every process below `pid`, parents before children."""
    children = defaultdict(list)
    for child, parent in _parents():
        children[parent].append(child)
    found: list[int] = []
    queue = [pid]
    while queue:
        below = children[queue.pop(0)]
        found += below
        queue += below
    return found


def kill_descendants(*, spare: Collection[int] = (), timeout_s: float = 5.0) -> list[int]:
    """Kill and reap everything below this process but `spare`; returns what could not be killed in time."""
    deadline = time.monotonic() + timeout_s
    while remaining := [pid for pid in descendants(os.getpid()) if pid not in spare]:
        signal_all(remaining, signal.SIGKILL)
        _reap(remaining)
        if time.monotonic() > deadline:
            return remaining
        time.sleep(0.005)
    return []


def signal_all(pids: Iterable[int], number: int) -> None:
    """Send a signal to each process that still exists."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def catching(pid: int, number: int) -> list[int]:
    """The process itself where it has a handler for a signal, else those below it that have one."""
    if catches(pid, number):
        return [pid]
    return [child for child in descendants(pid) if catches(child, number)]


def num_threads() -> int:
    """Threads of this process, those of C libraries included."""
    return len(list(Path("/proc/self/task").iterdir()))


def readable(fds: Iterable[int], *, timeout_s: float | None) -> set[int]:
    """Which descriptors have something to read, or have ended; waits up to `timeout_s`, None for as long as it takes.

    By poll, not select: a coordinator of thousands of nodes has descriptors beyond select's 1024.
    """
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return {fd for fd, _ in poll.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000)}


def allow_open_files() -> None:
    """Raise this process's limit of open files as far as it may be raised: each node costs a coordinator two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def state(pid: int) -> str | None:
    """The kernel's letter for a process: R runs, S and D sleep, T is stopped, Z has ended; None: it is gone."""
    fields = _stat(pid)
    return fields[0] if fields else None


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal (SigCgt of /proc/<pid>/status)."""
    try:
        words = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    except (FileNotFoundError, ProcessLookupError):
        return False
    return bool(int(words.get("SigCgt", "0"), 16) >> (number - 1) & 1)


def cpu_seconds() -> dict[int, float]:
    """CPU time of every process, with that of all that is or was below it."""
    own: dict[int, float] = {}
    parents: dict[int, int] = {}
    for pid, fields in _all_stats():
        own[pid] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
        parents[pid] = int(fields[1])
    total = dict(own)
    for pid, seconds in own.items():
        parent, depth = parents[pid], 0
        while parent in own and depth < DEEPEST:
            total[parent] += seconds
            parent, depth = parents[parent], depth + 1
    return total


def started_at(pid: int) -> float:
    """When a process began, as CLOCK_BOOTTIME seconds (clock ticks: 10 ms)."""
    fields = _stat(pid)
    if fields is None:
        raise ProcessLookupError(pid)
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def is_alive(pid: int, *, started_at: float) -> bool:
    """Whether the process that began at `started_at` still runs, and not another one with its number."""
    fields = _stat(pid)
    if fields is None or fields[0] in ("Z", "X"):
        return False
    return abs(int(fields[19]) / os.sysconf("SC_CLK_TCK") - started_at) < _SAME_START_S


def oom_kills() -> int:
    """How often the kernel's out-of-memory killer has struck in this control group, or else on this machine."""
    for path in (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat")):
        if path.exists():
            words = dict(line.split()[:2] for line in path.read_text(encoding="utf-8").splitlines())
            return int(words.get("oom_kill", 0))
    return 0


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _parents() -> Iterable[tuple[int, int]]:
    return ((pid, int(fields[1])) for pid, fields in _all_stats())


def _all_stats() -> Iterable[tuple[int, list[str]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            yield int(entry.name), fields


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat after the command's name, which may hold blanks and brackets itself."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text[text.rindex(")") + 2 :].split()


def _reap(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ChildProcessError):  # a grandchild still: it becomes ours when its parent is reaped
            os.waitpid(pid, os.WNOHANG)
