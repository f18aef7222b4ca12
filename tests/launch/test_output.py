"""What ranks print, on its way to the terminal and to the logs."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import HERE

from launcher.agent.output import Label, Pump, Stream
from launcher.files import append_line, read_lines, tail, write_text
from launcher.run.folder import create_run_folder, new_run_folder


def pumped(chunks: list[bytes], folder: Path, *, prefixed: bool) -> tuple[bytes, bytes]:
    """(terminal, log) after a rank wrote these chunks."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    terminal, log = (folder / "terminal").open("wb"), folder / "log"
    with terminal:
        pump = Pump([Stream(0, read_fd, write_fd, terminal.fileno(), prefixed)])
        pump.label({0: Label(7, log)})
        pump.start()
        for chunk in chunks:
            os.write(write_fd, chunk)
            pump.drain()
        pump.close()
    return (folder / "terminal").read_bytes(), log.read_bytes()


def test_output_reaches_terminal_and_log_byte_by_byte(tmp_path: Path) -> None:
    chunks = [b"a\r50%", b"\r100%\n\x00\xff", b"no end"]
    assert pumped(chunks, tmp_path, prefixed=False) == (b"".join(chunks), b"".join(chunks))


def test_prefixes_go_before_whole_lines(tmp_path: Path) -> None:
    terminal, log = pumped([b"one\ntw", b"o\n\nthree"], tmp_path, prefixed=True)
    assert terminal == b"[rank 7] one\n[rank 7] two\n[rank 7] \n[rank 7] three\n"
    assert log == b"one\ntwo\n\nthree"


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


def test_two_runs_in_one_second_get_two_folders(tmp_path: Path) -> None:
    folders = {new_run_folder("gpt", parent=tmp_path).path for _ in range(3)}
    assert len(folders) == 3
    assert all((folder / "logs").is_dir() for folder in folders)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_text(path, "first")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\udcff")
    assert path.read_text() == "first"


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
