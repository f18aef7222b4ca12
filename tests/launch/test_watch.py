"""Who hangs, who is slow, who is somewhere else: decisions on what heartbeats say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher import process
from launcher.agent.activity import ActivityWatch
from launcher.agent.rank_env import NCCL_PIPE_STEM, nccl_recorder
from launcher.agent.stack_dump import ask_nccl, dump, parse
from launcher.agent.watch import RankWatch, odd_ones_out
from launcher.run.heartbeat import Heartbeats, Pace, RankState


def state(*, beat_at: float = 0.0, step: int = 0, step_s: float = 0.0) -> RankState:
    return RankState(beat_at, step, step_s, script_at=0, failed_at=0, first_step_at=0, groups_at=0, checks_stop=False)


def watch(*, hang_timeout_s: float | None = 10.0, start_timeout_s: float | None = 20.0) -> RankWatch:
    return RankWatch(hang_timeout_s, start_timeout_s, straggler_factor=1.5, straggler_steps=3)


def test_a_rank_that_never_reported_is_not_watched() -> None:
    assert watch().hang({0: state(), 1: state(beat_at=95.0, step=4)}, now=100.0) is None


def test_a_silent_rank_is_a_hang_and_who_is_behind_is_named() -> None:
    states = {0: state(beat_at=80.0, step=7), 1: state(beat_at=79.0, step=6), 2: state(beat_at=99.0, step=7)}
    hang = watch().hang(states, now=100.0)
    assert hang is not None
    assert hang.silent == (1, 0)
    assert hang.silent_s == 21.0
    assert hang.behind == (1,)


def test_ranks_at_the_same_step_have_none_behind() -> None:
    hang = watch().hang({r: state(beat_at=1.0, step=5) for r in range(4)}, now=100.0)
    assert hang is not None
    assert hang.behind == ()


def test_hang_detection_can_be_off() -> None:
    assert watch(hang_timeout_s=None).hang({0: state(beat_at=1.0)}, now=1e9) is None


@pytest.mark.parametrize(
    ("beats", "expected", "now", "late"),
    [
        ({0: 0.0, 1: 0.0}, True, 119.0, None),
        ({0: 0.0, 1: 0.0}, True, 121.0, (0, 1)),
        ({0: 0.0, 1: 0.0}, False, 121.0, None),  # a program of the user's, which may never send any
        ({0: 105.0, 1: 0.0}, False, 121.0, (1,)),  # this one does
        ({0: 105.0, 1: 106.0}, True, 121.0, None),
    ],
)
def test_a_rank_without_a_first_heartbeat_hangs_where_one_is_expected(
    beats: dict[int, float], expected: bool, now: float, late: tuple[int, ...] | None
) -> None:
    states = {rank: state(beat_at=at) for rank, at in beats.items()}
    hang = watch().start_hang(states, expected=expected, started_at=100.0, now=now)
    assert (hang and hang.silent) == late
    assert watch(start_timeout_s=None).start_hang(states, expected=expected, started_at=100.0, now=now) is None


def silences(
    cpu: list[dict[int, float]], *, signs: dict[int, float] | None = None, limit_s: float = 10.0
) -> list[float]:
    """For how long two ranks (processes 7 and 8) have been silent, looked at every second."""
    looks = iter(cpu)
    activity = ActivityWatch(limit_s, lambda: next(looks), started_at=100.0)
    return [activity.silent_s({0: 7, 1: 8}, signs or {}, now=101.0 + second) for second in range(len(cpu))]


def test_ranks_without_output_and_cpu_time_are_silent_since_their_start() -> None:
    assert silences([{7: 5.0, 8: 5.0}] * 4) == [1.0, 2.0, 3.0, 4.0]


def test_one_rank_that_uses_a_core_a_little_keeps_the_node_from_being_silent() -> None:
    assert silences([{7: 5.0, 8: 5.0 + 0.02 * second} for second in range(4)]) == [1.0, 0.0, 0.0, 0.0]


def test_the_end_of_a_rank_counts_as_a_sign_of_life() -> None:
    activity = ActivityWatch(10.0, lambda: {7: 5.0, 8: 5.0}, started_at=100.0)
    assert activity.silent_s({0: 7, 1: 8}, {0: 0.0, 1: 0.0}, now=105.0) == 5.0
    assert activity.silent_s({0: 7}, {0: 0.0, 1: 0.0}, now=108.0) == 0.0
    assert activity.silent_s({0: 7}, {0: 0.0, 1: 0.0}, now=110.0) == 2.0


def test_threads_that_only_wait_do_not_count_as_work() -> None:
    assert silences([{7: 5.0, 8: 5.0 + 0.005 * second} for second in range(4)]) == [1.0, 2.0, 3.0, 4.0]


def test_output_and_heartbeats_count_as_signs_of_life() -> None:
    assert silences([{7: 5.0, 8: 5.0}] * 4, signs={0: 0.0, 1: 102.5}) == [0.0, 0.0, 0.5, 1.5]


def test_the_cpu_time_of_a_process_includes_that_of_what_it_started() -> None:
    before = process.cpu_seconds()[os.getpid()]
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        deadline = time.monotonic() + 30
        while process.cpu_seconds()[os.getpid()] < before + 0.1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert process.cpu_seconds()[child.pid] <= process.cpu_seconds()[os.getpid()]
    finally:
        child.kill()
        child.wait()


def test_only_a_signal_with_a_handler_is_caught() -> None:
    number = signal.SIGRTMAX - 7
    assert not process.catches(os.getpid(), number)
    before = signal.signal(number, lambda *_: None)
    assert process.catches(os.getpid(), number)
    signal.signal(number, before)
    assert not process.catches(os.getpid(), number)
    assert not process.catches(2**22 + 1, number)


def reported(times: list[list[float]], *, stages: dict[int, int] | None = None) -> list[int]:
    """Ranks named over steps; times[step][rank] is what the rank was busy itself."""
    one, named, spent = watch(), [], [0.0] * 4
    for step, row in enumerate([[9.0] * 4, *times], start=1):  # the first look sees the warm-up
        spent = [before + own_s for before, own_s in zip(spent, row, strict=True)]
        paces = {rank: Pace(step, own_s) for rank, own_s in enumerate(spent)}
        named += [slow.rank for slow in one.stragglers(paces, stages=stages)]
    return named


def test_a_rank_that_stays_slow_is_named_once() -> None:
    assert reported([[1.0, 1.0, 2.0, 1.0]] * 9) == [2]


def test_a_rank_that_was_slow_for_a_moment_is_not_named() -> None:
    fast, slow = [1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 2.0, 1.0]
    assert reported([slow, slow, fast, slow, slow, fast]) == []


def test_a_rank_is_compared_with_those_of_its_stage_where_they_are_enough() -> None:
    times = [[1.0, 1.0, 1.0, 3.0]] * 9
    assert reported(times, stages={0: 0, 1: 0, 2: 0, 3: 1}) == [3]  # one in its stage: compared with all
    one = watch()
    uneven = {rank: 1 if rank < 3 else 3 for rank in range(6)}  # the second stage has three times the work
    for look in range(1, 9):
        paces = {rank: Pace(look * 10, float(look * work)) for rank, work in uneven.items()}
        assert one.stragglers(paces, stages={rank: rank // 3 for rank in uneven}) == []


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(1.0, 1.49), min_size=4, max_size=4), max_size=20))
def test_ranks_within_the_factor_are_never_named(times: list[list[float]]) -> None:
    assert reported(times) == []


@pytest.mark.parametrize(
    ("places", "odd"),
    [
        ({0: "a", 1: "a", 2: "b", 3: "a"}, [2]),
        ({0: "a", 1: "b"}, []),
        ({0: "a", 1: "a"}, []),
        ({}, []),
        ({0: "a", 1: "a", 2: "a", 3: "b", 4: "c"}, [3, 4]),
    ],
)
def test_the_odd_one_out_needs_a_majority(places: dict[int, str], odd: list[int]) -> None:
    assert odd_ones_out({rank: (place,) for rank, place in places.items()}) == odd


def test_the_main_threads_frames_are_read_from_faulthandler() -> None:
    text = """Thread 0x00007f01 (most recent call first):
  File "/usr/lib/threading.py", line 320 in wait

Current thread 0x00007f02 (most recent call first):
  File "/x/torch/distributed/distributed_c10d.py", line 3252 in all_reduce
  File "/home/a b/train.py", line 35 in <module>
"""
    assert parse(text.splitlines()) == ("distributed_c10d.py:all_reduce", "train.py:<module>")


class PrintsInPieces:
    """A rank that has printed an older stack, and prints another line of the new one at each look."""

    def __init__(self, old: list[str], new: list[str]) -> None:
        self.lines, self.new = old, new

    def printed_bytes(self, local_rank: int) -> int:
        before = len("".join(f"{line}\n" for line in self.lines))
        self.lines, self.new = [*self.lines, *self.new[:1]], self.new[1:]
        return before

    def last_lines(self, local_rank: int, *, num_lines: int) -> list[str]:
        return self.lines[-num_lines:]


def test_a_stack_that_is_printed_in_pieces_is_waited_for() -> None:
    head, script = "Current thread 0x01 (most recent call first):", '  File "/x/train.py", line 9 in <module>'
    old = [head, '  File "/x/train.py", line 3 in load', script]
    new = ["Thread 0x02 (most recent call first):", '  File "/x/threading.py", line 1 in wait', "", head,
           '  File "/x/train.py", line 5 in save', script]  # fmt: skip
    catches = subprocess.Popen(
        [sys.executable, "-c", "import signal; signal.signal(12, print); print('up', flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with catches:
        assert catches.stdout is not None
        assert catches.stdout.readline() == b"up\n"
        asked: list[list[int]] = []
        found = dump({3: catches.pid}, number=12, printed=PrintsInPieces(old, new), send=asked.append)
        catches.kill()
    assert asked == [[3]]
    assert found[3].frames == ("train.py:save", "train.py:<module>")


def test_a_name_that_the_kernel_cut_inside_a_character_hides_no_process(tmp_path: Path) -> None:
    program = tmp_path / ("x" * 14 + "é")
    program.write_text("#!/bin/sh\necho up; read line\n")
    program.chmod(0o755)
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as named:
        assert named.stdout is not None
        assert named.stdout.readline() == b"up\n"
        assert Path(f"/proc/{named.pid}/comm").read_bytes() == b"x" * 14 + b"\xc3\n"
        assert named.pid in process.descendants(os.getpid())
        assert process.state(named.pid) == "S" and not process.catches(named.pid, signal.SIGUSR1)
        named.kill()


def test_heartbeats_carry_what_each_rank_reports() -> None:
    heartbeats = Heartbeats.create(num_ranks=3)
    try:
        seen = Heartbeats.attach(heartbeats.fd)
        assert seen is not None
        assert seen.num_ranks == 3
        heartbeats.beat(1, step=40, step_s=0.5, own_s=0.125)
        heartbeats.beat(1, step=41, step_s=0.25)
        heartbeats.mark_checks_stop(2)
        assert (seen.state(1).step, seen.state(1).step_s) == (41, 0.25)
        assert seen.state(1).own_s == 0.375
        assert seen.state(1).beat_at >= seen.state(1).first_step_at > 0
        assert seen.state(2).checks_stop
        assert seen.state(0) == state()
        assert not seen.stop_requested
        heartbeats.request_stop()
        assert seen.stop_requested
        heartbeats.clear(1)
        assert seen.state(1) == state()
    finally:
        os.close(heartbeats.fd)


def test_another_file_is_not_taken_for_heartbeats() -> None:
    with Path(os.devnull).open() as other:
        assert Heartbeats.attach(other.fileno()) is None
    assert Heartbeats.attach(10_000) is None


def test_ranks_with_nccls_recorder_are_asked_for_its_trace(tmp_path: Path) -> None:
    for rank in (0, 2):
        os.mkfifo(tmp_path / f"{NCCL_PIPE_STEM}{rank}.pipe")
    reader = os.open(tmp_path / f"{NCCL_PIPE_STEM}2.pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert ask_nccl(tmp_path, range(3)) == [2]
        assert os.read(reader, 10) == b"1"
    finally:
        os.close(reader)
    assert nccl_recorder(tmp_path)["TORCH_NCCL_DEBUG_INFO_PIPE_FILE"] == str(tmp_path / NCCL_PIPE_STEM)
