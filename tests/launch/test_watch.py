"""Who hangs, who is slow, who is somewhere else: decisions on what the board says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.agent.rank_env import NCCL_PIPE_STEM, nccl_recorder
from launcher.agent.stack_dump import ask_nccl, parse
from launcher.agent.watch import RankWatch, odd_ones_out
from launcher.run.heartbeat import Heartbeats, Pace, RankState


def state(*, beat_at: float = 0.0, step: int = 0, step_s: float = 0.0) -> RankState:
    return RankState(beat_at, step, step_s, script_at=0, failed_at=0, first_step_at=0, groups_at=0, checks_stop=False)


def watch(*, hang_timeout_s: float | None = 10.0) -> RankWatch:
    return RankWatch(hang_timeout_s, straggler_factor=1.5, straggler_steps=3)


def test_a_rank_that_never_told_anything_is_not_watched() -> None:
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


def told(times: list[list[float]], *, stages: dict[int, int] | None = None) -> list[int]:
    """Ranks named over steps; times[step][rank] is what the rank was busy itself."""
    one, named, spent = watch(), [], [0.0] * 4
    for step, row in enumerate([[9.0] * 4, *times], start=1):  # the first look sees the warm-up
        spent = [before + own_s for before, own_s in zip(spent, row, strict=True)]
        paces = {rank: Pace(step, own_s) for rank, own_s in enumerate(spent)}
        named += [slow.rank for slow in one.stragglers(paces, stages=stages)]
    return named


def test_a_rank_that_stays_slow_is_named_once() -> None:
    assert told([[1.0, 1.0, 2.0, 1.0]] * 9) == [2]


def test_a_rank_that_was_slow_for_a_moment_is_not_named() -> None:
    fast, slow = [1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 2.0, 1.0]
    assert told([slow, slow, fast, slow, slow, fast]) == []


def test_a_rank_is_compared_with_those_of_its_stage_where_they_are_enough() -> None:
    times = [[1.0, 1.0, 1.0, 3.0]] * 9
    assert told(times, stages={0: 0, 1: 0, 2: 0, 3: 1}) == [3]  # one in its stage: compared with all
    one = watch()
    uneven = {rank: 1 if rank < 3 else 3 for rank in range(6)}  # the second stage has three times the work
    for look in range(1, 9):
        paces = {rank: Pace(look * 10, float(look * work)) for rank, work in uneven.items()}
        assert one.stragglers(paces, stages={rank: rank // 3 for rank in uneven}) == []


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(1.0, 1.49), min_size=4, max_size=4), max_size=20))
def test_ranks_within_the_factor_are_never_named(times: list[list[float]]) -> None:
    assert told(times) == []


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


def test_the_board_carries_what_each_rank_tells() -> None:
    board = Heartbeats.create(num_ranks=3)
    try:
        seen = Heartbeats.attach(board.fd)
        assert seen is not None
        assert seen.num_ranks == 3
        board.beat(1, step=40, step_s=0.5, own_s=0.125)
        board.beat(1, step=41, step_s=0.25)
        board.mark_checks_stop(2)
        assert (seen.state(1).step, seen.state(1).step_s) == (41, 0.25)
        assert seen.state(1).own_s == 0.375
        assert seen.state(1).beat_at >= seen.state(1).first_step_at > 0
        assert seen.state(2).checks_stop
        assert seen.state(0) == state()
        assert not seen.stop_requested
        board.request_stop()
        assert seen.stop_requested
        board.clear(1)
        assert seen.state(1) == state()
    finally:
        os.close(board.fd)


def test_another_file_is_not_taken_for_a_board() -> None:
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
