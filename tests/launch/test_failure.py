"""What is told of a rank's end."""

from __future__ import annotations

from pathlib import Path

from launcher.agent.failure import LOG_HEADER, last_words

CRASH = f"""{LOG_HEADER}rank 1 of 2, start 1
loading
Fatal Python error: Segmentation fault

Current thread 0x00007f28231cab80 (most recent call first):
  File "/home/me/train.py", line 3 in step
  File "/home/me/train.py", line 9 in <module>
  File "<frozen runpy>", line 88 in _run_code
  File "/opt/launcher/agent/rank.py", line 40 in _run_script

Extension modules: numpy.linalg._umath_linalg, torch._C (total: 2)
"""


def test_a_crash_is_shown_down_to_the_script_and_no_further(tmp_path: Path) -> None:
    log = tmp_path / "rank-1.log"
    log.write_text(CRASH)
    assert last_words(log) == [
        "loading",
        "Fatal Python error: Segmentation fault",
        "Current thread 0x00007f28231cab80 (most recent call first):",
        '  File "/home/me/train.py", line 3 in step',
        '  File "/home/me/train.py", line 9 in <module>',
    ]


def test_the_last_traceback_of_the_last_start_is_shown_whole(tmp_path: Path) -> None:
    log = tmp_path / "rank-0.log"
    traceback = [
        "Traceback (most recent call last):", '  File "a.py", line 1, in <module>',
        '  File "<frozen runpy>", line 1, in run_path', '  File "b.py", line 2, in <module>', "ValueError: no",
    ]  # fmt: skip
    log.write_text("\n".join([f"{LOG_HEADER}start 1", "an old word", f"{LOG_HEADER}start 2", "a word", *traceback]))
    assert last_words(log) == traceback
