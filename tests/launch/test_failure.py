"""Messages about the end of a rank."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.agent.failure import RankEnd, describe, describe_hang, last_words
from launcher.agent.stack_dump import CallStack
from launcher.agent.watch import Hang

CRASH = """loading
Fatal Python error: Segmentation fault

Current thread 0x00007f28231cab80 (most recent call first):
  File "/home/me/train.py", line 3 in step
  File "/home/me/train.py", line 9 in <module>
  File "<frozen runpy>", line 88 in _run_code
  File "/opt/launcher/agent/rank.py", line 40 in _run_script

Extension modules: numpy.linalg._umath_linalg, torch._C (total: 2)
"""


def test_a_crash_is_shown_down_to_the_script_and_no_further() -> None:
    assert last_words(CRASH.splitlines()) == [
        "loading",
        "Fatal Python error: Segmentation fault",
        "Current thread 0x00007f28231cab80 (most recent call first):",
        '  File "/home/me/train.py", line 3 in step',
        '  File "/home/me/train.py", line 9 in <module>',
    ]


def test_the_last_traceback_is_shown_whole() -> None:
    traceback = [
        "Traceback (most recent call last):", '  File "a.py", line 1, in <module>',
        '  File "<frozen runpy>", line 1, in run_path', '  File "b.py", line 2, in <module>', "ValueError: no",
    ]  # fmt: skip
    assert last_words(["an old word", *traceback]) == traceback


def test_control_characters_in_last_words_are_shown_and_not_sent() -> None:
    assert last_words(["\x1b[2Jgone\x07", "\tfine é", "\x9b31m"]) == ["\\x1b[2Jgone\\x07", "\tfine é", "\\x9b31m"]


def end(rank: int, *, code: int, at: float) -> RankEnd:
    return RankEnd(rank, rank, node=0, host="node1", pid=100 + rank, code=code, at=at, log=Path(f"rank-{rank}.log"))


def test_a_rank_that_left_early_is_named_before_those_who_then_failed() -> None:
    ends = [end(2, code=0, at=10.0), end(0, code=1, at=13.0), end(1, code=1, at=13.1)]
    lines = describe(ends, printed=["Connection closed by peer"], oom_kills=0).splitlines()
    assert lines[0] == "rank 2 left early, with exit code 0, 3.0 s before the first failure"
    assert lines[1].startswith("rank 0 failed first (local rank 0 of node 0, node1, pid 100): exit code 1")
    assert lines[2] == "1 other rank failed after it"
    assert lines[-1] == "    Connection closed by peer"


def test_ranks_that_end_well_after_a_failure_are_not_blamed() -> None:
    ends = [end(0, code=1, at=13.0), end(1, code=0, at=14.0)]
    assert describe(ends, printed=[], oom_kills=0).startswith("rank 0 failed first")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("heartbeat", "no heartbeat from rank 4, 5 of node 2 for 61 s"),
        ("start", "rank 4, 5 of node 2 has sent no first heartbeat within 61 s (launch.start_timeout_s)"),
        ("silence", "for 61 s no rank has printed anything, used a core or finished a step"),
    ],
)
def test_each_kind_of_hang_is_said_with_the_stacks_of_all_ranks_in_groups(kind: str, said: str) -> None:
    stacks = {rank: CallStack("S", ("gloo.py:wait",) if rank else ("data.py:load\x1b[2J",), ()) for rank in range(3)}
    hang = Hang((0, 1), 61.0, dict.fromkeys(range(3), 0), kind=kind)
    lines = describe_hang(hang, stacks, left=[3], first_rank=4, node=2, logs=Path("logs")).splitlines()
    assert lines[0].startswith(f"the job hangs: {said}")
    assert "rank 7 left early, with exit code 0" in lines
    assert "odd one out: rank 4 is at a different place than the others" in lines
    assert "rank 5 (step 0), 6 (step 0): gloo.py:wait" in lines
    assert "rank 4 (step 0): data.py:load\\x1b[2J" in lines
