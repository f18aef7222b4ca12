"""Linux processes: trees, threads, death signals. Everything here uses process ids."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import select
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

STARVED_S = 10.0  # for threads that are ready to run and get no core
_SAME_START_S = 0.02  # start times come in ticks of 10 ms
DEEPEST = 64  # levels of descendants; a tree that is read while it changes could contain a cycle
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36  # <linux/prctl.h>
_USUAL = (
    *(signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2),
    *(signal.SIGCONT, signal.SIGALRM),
)
_ARG_START, _ARG_END = 45, 46  # of _stat's fields: where the command line is in memory (proc_pid_stat(5))


class Thread(NamedTuple):
    """The kernel's state letter of a thread, as in `state`, and its CPU time (resolution: 10 ms)."""

    state: str
    cpu_s: float


def take_usual_signals() -> None:
    """Receive what another program has blocked before it became this one, and learn of the ends of children.

    Signals that are ignored stay so (nohup), except SIGCHLD: the kernel would forget the exit codes of children.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _USUAL)
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def die_with_parent(parent_pid: int, number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when its parent ends, also if the parent is gone already."""
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), number)


def set_command_line(argv: Sequence[str]) -> None:
    """Set what `ps` shows for this process, truncated to the length of its original command line."""
    fields = _stat(os.getpid())
    start, end = (int(fields[_ARG_START]), int(fields[_ARG_END])) if fields else (0, 0)
    if not 0 < start < end:  # the kernel does not report its address
        return
    text = b"".join(os.fsencode(word) + b"\0" for word in argv)[: end - start - 1]
    ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)
    name = ctypes.create_string_buffer(os.fsencode(Path(argv[0]).name)[:15])
    _prctl(_PR_SET_NAME, ctypes.addressof(name))


def adopt_orphans() -> None:
    """Adopt descendants when their parent ends, so that none escapes `descendants`."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def descendants(pid: int) -> list[int]:
    """Return every process below `pid`, parents before children."""
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
    """Kill and reap everything below this process except `spare`; return what could not be killed in time."""
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
    """Return the process itself if it handles a signal, else its descendants that do."""
    if catches(pid, number):
        return [pid]
    return [child for child in descendants(pid) if catches(child, number)]


def num_threads() -> int:
    """Return the number of threads of this process, including those of C libraries."""
    return len(list(Path("/proc/self/task").iterdir()))


def has_one_thread(*, within_s: float = 0.0) -> bool:
    """Return whether this process has one thread, or will have within a time: a joined thread ends a little later.

    Where it has no core to end on, it gets STARVED_S more.
    """
    deadline = time.monotonic() + within_s
    while (count := num_threads()) > 1 and (over_s := time.monotonic() - deadline) < STARVED_S * bool(within_s):
        if over_s > 0 and not any(thread.state == "R" for thread in other_threads().values()):
            break
        time.sleep(0.001)
    return count == 1


def other_threads() -> dict[int, Thread]:
    """Return the threads of this process but the calling one, by their ids."""
    own = threading.get_native_id()
    tasks = [int(entry.name) for entry in Path("/proc/self/task").iterdir() if int(entry.name) != own]
    found = {task: _stat(task, under="/proc/self/task") for task in tasks}
    return {
        task: Thread(fields[0], (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
        for task, fields in found.items()
        if fields
    }


def readable(fds: Iterable[int], *, timeout_s: float | None) -> set[int]:
    """Return the descriptors that are readable or closed; wait up to `timeout_s`, None: without limit.

    Uses poll, not select: a coordinator of thousands of nodes has descriptors beyond select's 1024.
    """
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return {fd for fd, _ in poll.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000)}


def is_unread(fd: int) -> bool:
    """Whether what is written to a pipe, socket or terminal reaches nobody any more."""
    poll = select.poll()
    poll.register(fd, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def writable(fds: Iterable[int], *, timeout_s: float) -> None:
    """Wait until one of the descriptors takes more, or is closed, at most `timeout_s`."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLOUT)
    poll.poll(max(0.0, timeout_s) * 1000)


def allow_open_files() -> None:
    """Raise this process's limit of open files to the hard limit: each node costs a coordinator two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def peak_resident_bytes() -> int:
    """Return the most memory that this process has held, since its start or `forget_peak_resident`."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def forget_peak_resident() -> None:
    """Begin a new peak with what is held now, where the kernel can: proc_pid_clear_refs(5)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def state(pid: int) -> str | None:
    """Return the kernel's state letter: R running, S and D sleeping, T stopped, Z ended; None: no such process."""
    fields = _stat(pid)
    return fields[0] if fields else None


def catches(pid: int, number: int) -> bool:
    """Return whether a process has a handler for a signal (SigCgt of /proc/<pid>/status)."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", text, re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


def cpu_seconds() -> dict[int, float]:
    """Return the CPU time of every process, including its present and reaped descendants."""
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
    """Return the start time of a process in CLOCK_BOOTTIME seconds (resolution: 10 ms)."""
    fields = _stat(pid)
    if fields is None:
        raise ProcessLookupError(pid)
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def is_alive(pid: int, *, started_at: float) -> bool:
    """Return whether the process that started at `started_at` is still running; its number may have been reused."""
    fields = _stat(pid)
    if fields is None or fields[0] in ("Z", "X"):
        return False
    return abs(int(fields[19]) / os.sysconf("SC_CLK_TCK") - started_at) < _SAME_START_S


def oom_kills() -> int:
    """Return how many processes the out-of-memory killer has killed in this cgroup, or else on this machine."""
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


def _stat(pid: int, *, under: str = "/proc") -> list[str] | None:
    """Return the fields of a process's `stat` after its name.

    The name may have spaces, parentheses and half a character: the kernel cuts it after 15 bytes.
    """
    try:
        text = Path(f"{under}/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text[text.rindex(")") + 2 :].split()


def _reap(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ChildProcessError):  # still a grandchild: it becomes our child when its parent is reaped
            os.waitpid(pid, os.WNOHANG)
