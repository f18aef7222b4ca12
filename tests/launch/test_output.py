"""What ranks print, on its way to the terminal and to the logs."""

from __future__ import annotations

import json
import os
import pty
import resource
import select
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import HERE, Job

from launcher.agent.output import Label, Pump, open_stream
from launcher.agent.plain_text import PlainLines
from launcher.agent.sink import LIMIT_BYTES, MISSING, LogTarget, OutputSink
from launcher.files import append_line, read_lines, tail, write_text
from launcher.run.folder import RunFolder, create_run_folder, new_run_folder
from launcher.run.node_state import node_states
from launcher.text import shown


def pumped(chunks: list[bytes], folder: Path, *, prefixed: bool) -> tuple[bytes, bytes]:
    """(terminal, log) after a rank wrote these chunks."""
    log = folder / "log"
    with standard_output(folder / "terminal"):
        stream = open_stream(0, terminal_fd=1, prefixed=prefixed)
        pump = Pump([stream])
        pump.label({0: Label(7, log)})
        pump.start()
        for chunk in chunks:
            os.write(stream.write_fd, chunk)
            pump.drain() if chunk.endswith(b"\n") else time.sleep(0.05)
        pump.close()
    return (folder / "terminal").read_bytes(), log.read_bytes()


@contextmanager
def standard_output(path: Path) -> Iterator[None]:
    """Descriptors 1 and 2 are this file for a while."""
    kept = [os.dup(fd) for fd in (1, 2)]
    with path.open("wb") as file:
        for fd in (1, 2):
            os.dup2(file.fileno(), fd)
    try:
        yield
    finally:
        for fd, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, fd)
            os.close(copy)


def test_the_terminal_gets_output_byte_by_byte_and_the_log_gets_lines(tmp_path: Path) -> None:
    chunks = [b"a\r50%", b"\r100%\n\x00\xff", b"no end"]
    assert pumped(chunks, tmp_path, prefixed=False) == (b"".join(chunks), b"a\n100%\n\x00\xffno end\n")


def test_prefixes_go_before_whole_lines(tmp_path: Path) -> None:
    terminal, log = pumped([b"one\ntw", b"o\n\nthr", b"ee"], tmp_path, prefixed=True)
    assert terminal == b"[rank 7] one\n[rank 7] two\n[rank 7] \n[rank 7] three\n"
    assert log == b"one\ntwo\n\nthree\n"


def plain(*chunks: bytes, times: Sequence[float] = ()) -> bytes:
    lines = PlainLines()
    found = [lines.feed(chunk, now=now) for chunk, now in zip_longest(chunks, times, fillvalue=0.0)]
    return b"".join([*found, lines.rest()])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([b"one\r\ntwo\r\n"], b"one\ntwo\n"),
        ([b"\r 0%", b"\r 50%", b"\r100%\n", b"after\n"], b" 0%\n100%\nafter\n"),
        ([b" 0%\r 50%\r100%\r", b"after\n"], b" 0%\nafter\n"),
        ([b" 0%\r 50%\r100%\r"], b" 0%\n100%\n"),
        ([b"\x1b[31mred\x1b[0m\n\x1b]0;title\x07\x1b[2K\x1b[1Aup\n"], b"red\nup\n"),
        ([b"\n\n"], b"\n\n"),
        ([b"prompt> "], b"prompt> "),
    ],
)
def test_a_log_has_plain_lines_where_the_terminal_has_bars_and_colours(chunks: list[bytes], expected: bytes) -> None:
    assert plain(*chunks) == expected


def test_a_progress_bar_is_a_line_of_the_log_every_ten_seconds() -> None:
    states = [f"\r{second}%".encode() for second in range(36)]
    assert plain(*states, b"\n", times=range(100, 137)) == b"0%\n10%\n20%\n30%\n35%\n"


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=20)), st.integers(0, 20))
def test_cutting_the_stream_elsewhere_changes_no_line(chunks: list[bytes], size: int) -> None:
    data = b"".join(chunks)
    pieces = [data[i : i + size + 1] for i in range(0, len(data), size + 1)]
    assert plain(*chunks, times=[0.0] * len(chunks)) == plain(*pieces, times=[0.0] * len(pieces))


@pytest.mark.parametrize("unit", [b"x", b"x\r", b"\x1b[", b"x" * 100])
def test_lines_take_time_in_proportion_to_what_arrives(unit: bytes) -> None:
    def seconds(num_bytes: int) -> float:
        lines, began = PlainLines(), time.process_time()
        for _ in range(num_bytes // 64):
            lines.feed((unit * 64)[:64], now=0.0)
        return time.process_time() - began

    seconds(1 << 18)
    assert seconds(1 << 21) < 20 * max(seconds(1 << 18), 0.01)  # 8 times as much; if quadratic, 64 times the time


def test_control_characters_are_shown() -> None:
    assert shown("a\x1b[2Jb\x07\tc\u202e\x9b é") == "a\\x1b[2Jb\\x07\tc\\u202e\\x9b é"


class Deaf:
    """A target that takes nothing until it may."""

    name = "deaf"

    def __init__(self) -> None:
        self.may = threading.Event()
        self.taken = b""

    def write(self, data: memoryview) -> int:
        self.may.wait(60)
        self.taken += data
        return len(data)

    def close(self) -> None:
        return


def test_a_stuck_sink_is_waited_for_once_then_loses_the_oldest_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.agent.sink.STUCK_S", 0.3)
    faults: list[tuple[str, str]] = []
    sink, target = OutputSink(on_fault=lambda *fault: faults.append(fault)), Deaf()
    began = time.monotonic()
    for number in range(100):
        sink.put(target, b"%03d" % number + b"." * (LIMIT_BYTES // 10))
    assert time.monotonic() - began < 27  # 90 do not fit: waited for each time, they would take this long
    assert sink.lost_bytes > 80 * LIMIT_BYTES // 10
    monkeypatch.setattr("launcher.agent.sink.STUCK_S", 60.0)  # it is stuck no more, however slow the machine
    target.may.set()
    sink.close()
    assert faults == [("deaf", "it has accepted nothing for 0.3 s")]
    assert target.taken.startswith(b"000")
    assert b"099" in target.taken
    lost = sink.lost_bytes
    assert MISSING.format(lost).encode() in target.taken
    assert len(target.taken) == 100 * (3 + LIMIT_BYTES // 10) - lost + len(MISSING.format(lost))


def test_a_slow_sink_is_waited_for_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.agent.sink.LIMIT_BYTES", 1000)
    sink, target = OutputSink(on_fault=lambda *_: pytest.fail("no fault")), Deaf()
    target.may.set()
    write = target.write
    target.write = lambda data: time.sleep(0.005) or write(data)  # type: ignore[method-assign,func-returns-value]
    for _ in range(100):
        sink.put(target, b"x" * 400)
    sink.close()
    assert target.taken == b"x" * 40_000
    assert sink.lost_bytes == 0


def test_a_log_that_has_room_again_says_how_much_is_missing(tmp_path: Path) -> None:
    faults: list[tuple[str, str]] = []
    sink, log = OutputSink(on_fault=lambda *fault: faults.append(fault)), LogTarget(tmp_path / "folder" / "log")
    for line in (b"one\n", b"two\n"):
        sink.put(log, line)
        sink.flush(timeout_s=10)
    (tmp_path / "folder").mkdir()
    sink.put(log, b"three\n")
    sink.flush(timeout_s=10)
    (tmp_path / "folder" / "log").unlink()
    sink.put(log, b"four\n")
    sink.close()
    assert faults == [(log.name, "No such file or directory")]
    assert sink.lost_bytes == 8
    assert (tmp_path / "folder" / "log").read_text() == "four\n"


@pytest.mark.slow
def test_rank_0_sees_the_terminal_that_the_command_has(tmp_path: Path) -> None:
    script = tmp_path / "tty.py"
    script.write_text(
        "import os, sys\n"
        "columns = os.get_terminal_size(1).columns if sys.stdout.isatty() else 0\n"
        "print(sys.stdout.isatty(), sys.stderr.isatty(), columns)\n"
    )
    ours, theirs = pty.openpty()
    launch = json.dumps({"start": "spawn"})
    command = [sys.executable, HERE / "driver.py", tmp_path / "run", script, "2", launch]
    subprocess.run(["stty", "cols", "91"], stdin=theirs, check=True)
    job = subprocess.Popen([str(word) for word in command], stdout=theirs, stderr=subprocess.PIPE)
    error = job.communicate(timeout=240)[1]
    os.close(theirs)
    assert job.returncode == 0, error
    assert os.read(ours, 4096) == b"True False 91\r\n"
    os.close(ours)
    assert (tmp_path / "run" / "logs" / "rank-0.log").read_text().endswith("True False 91\n")
    assert "False False" not in error.decode()


NOISE = HERE / "noise_script.py"


def in_small_disk(folder: Path, *command: str | Path) -> list[str]:
    """The command with a real disk of one megabyte at `folder`: a tmpfs of its own mount namespace."""
    mount = f'mount -t tmpfs -o size=1m none {folder} && exec "$@"'
    return ["unshare", "-m", "sh", "-c", mount, "sh", *map(str, command)]


def can_mount() -> bool:
    done = subprocess.run(in_small_disk(Path("/mnt"), "true"), capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("console", ["rank0", "all"])
def test_a_full_disk_costs_output_and_not_the_run(tmp_path: Path, console: str) -> None:
    if not can_mount():
        pytest.skip("mounting a tmpfs in a namespace of its own is not allowed here")
    launch = json.dumps({"console": console})
    disk = tmp_path / "disk"
    disk.mkdir()
    driver = (sys.executable, HERE / "driver.py", disk / "run", NOISE, "2", launch, "mb=3")
    done = subprocess.run(in_small_disk(disk, *driver), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rank 0 made 10 steps" in done.stdout
    words = [line for line in done.stderr.splitlines() if line.startswith("launcher: ")]
    assert sum("log cannot be written (No space left on device)" in line for line in words) == 1
    assert any("bytes of output are missing in the logs" in line for line in words)
    assert "Traceback" not in done.stderr


JUMPS = """\
import time
from pathlib import Path
real, clock = time.time, Path({clock!r})
time.time = lambda: real() + (float(clock.read_text()) if clock.exists() else 0.0)
"""


@pytest.mark.slow
def test_a_full_disk_of_the_ledger_alone_and_a_clock_that_jumps_cost_neither_the_run_nor_its_state(
    tmp_path: Path,
) -> None:
    """One run for both. The clock of the job's processes goes back by a day when the ranks have begun."""
    if not can_mount():
        pytest.skip("mounting a tmpfs in a namespace of its own is not allowed here")
    disk, run, clock, own = (tmp_path / name for name in ("disk", "run", "clock", "own"))
    for folder in (disk, run, own):
        folder.mkdir()
    (run / "ledger.jsonl").symlink_to(disk / "ledger.jsonl")
    (own / "sitecustomize.py").write_text(JUMPS.format(clock=str(clock)))
    fill = f"head -c 2m /dev/zero > {disk}/full 2>/dev/null; exec"
    command = [sys.executable, HERE / "driver.py", run, NOISE, "2", "{}", "mb=1", f"dir={tmp_path}"]
    with_disk = in_small_disk(disk, *command)
    with_disk[4] = with_disk[4].replace("exec", fill)
    variables = {**os.environ, "PYTHONPATH": f"{own}:{os.environ.get('PYTHONPATH', '')}"}
    job = subprocess.Popen(with_disk, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)
    while not all((tmp_path / f"began-{rank}").exists() for rank in range(2)) and job.poll() is None:
        time.sleep(0.05)
    clock.write_text("-86400")
    (tmp_path / "go").touch()
    out, err = job.communicate(timeout=240)
    assert job.returncode == 0, err
    assert "rank 0 made 10 steps" in out
    assert err.count("ledger.jsonl cannot be written (No space left on device)") == 1
    assert "Traceback" not in err
    [state] = node_states(RunFolder(run))
    assert state.state == "done"


@pytest.mark.slow
def test_a_file_size_limit_costs_output_and_not_the_run(tmp_path: Path) -> None:
    driver = [sys.executable, str(HERE / "driver.py"), str(tmp_path / "run"), str(NOISE), "2", "{}", "mb=3"]
    limited = ["sh", "-c", 'ulimit -f 1000; exec "$@"', "sh", *driver]  # of 512 bytes
    done = subprocess.run(limited, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("log cannot be written (File too large)") == 1
    assert (tmp_path / "run" / "logs" / "rank-1.log").stat().st_size == 512_000


@pytest.mark.slow
def test_a_removed_run_folder_costs_output_and_not_the_run(start: Callable[..., Job], tmp_path: Path) -> None:
    job = start(f"dir={tmp_path}", "mb=1", ranks=2, script=NOISE)
    job.wait_for(lambda: all((tmp_path / f"began-{rank}").exists() for rank in range(2)))
    shutil.rmtree(job.folder.rename(tmp_path / "removed"))  # at once: the agent writes into it all the time
    (tmp_path / "go").touch()
    code, out, err = job.finish()
    assert code == 0, err
    assert "rank 0 made 10 steps" in out
    assert err.count("log cannot be written (No such file or directory)") == 1
    assert err.count("ledger.jsonl cannot be written") == 1
    assert err.count("node-0.json cannot be written") == 1
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_closed_terminal_costs_the_view_and_not_the_run(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, HERE / "driver.py", tmp_path / "run", NOISE, "2", "{}", "mb=3", f"dir={tmp_path}"]
    job = subprocess.Popen([str(word) for word in command], stdout=theirs, stderr=theirs, stdin=theirs)
    os.close(theirs)
    while not (tmp_path / "began-0").exists() and job.poll() is None:
        if select.select([ours], [], [], 0.1)[0]:
            os.read(ours, 65536)
    os.close(ours)
    (tmp_path / "go").touch()
    assert job.wait(timeout=240) == 0
    log = (tmp_path / "run" / "logs" / "rank-0.log").read_text()
    assert log.count("launcher: standard output cannot be written (Input/output error)") == 1
    assert log.count("x" * 79) == 3_000_000 // 10 // 80 * 10
    assert "rank 0 made 10 steps" in log


@pytest.mark.slow
def test_a_reader_that_does_not_read_or_has_gone_holds_up_nothing(start: Callable[..., Job], tmp_path: Path) -> None:
    job = start("mb=12", ranks=2, script=NOISE)
    job.process.stderr.close()  # type: ignore[union-attr]
    assert job.process.wait(timeout=240) == 0  # nobody has read its standard output yet
    assert "rank 1 made 10 steps" in job.log(1)
    assert "rank 0 made 10 steps" in job.log(0)


def test_two_runs_in_one_second_get_two_folders(tmp_path: Path) -> None:
    folders = {new_run_folder("gpt", parent=tmp_path).path for _ in range(3)}
    assert len(folders) == 3
    assert all((folder / "logs").is_dir() for folder in folders)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_text(path, "first")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # as on a disk that fills up half way
    try:
        with pytest.raises(OSError, match="File too large"):
            write_text(path, "second" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]
    write_text(path, "\udcff")
    assert path.read_bytes() == b"\xff"


def test_a_line_that_was_cut_off_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    append_line(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"b": ')
    assert list(read_lines(path)) == [{"a": 1}]
    assert list(read_lines(tmp_path / "absent")) == []


def test_the_tail_of_a_large_log_is_read_without_the_rest(tmp_path: Path) -> None:
    log = create_run_folder(tmp_path / "run").rank_log(0)
    log.write_text("".join(f"line {i}\n" for i in range(100_000)))
    assert tail(log, num_lines=2) == ["line 99998", "line 99999"]
    assert tail(tmp_path / "absent", num_lines=2) == []
