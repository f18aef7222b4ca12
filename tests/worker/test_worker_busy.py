"""The clock that leaves waiting out."""

from __future__ import annotations

import time

import pytest

from launcher import env
from launcher.worker.metrics.own_time import BusyClock


@pytest.mark.parametrize("num_ranks", [1, 100_000], ids=["a core for each rank", "fewer cores than ranks"])
def test_work_counts_and_sleep_does_not(num_ranks: int) -> None:
    began_s = time.monotonic()
    clock = BusyClock(num_ranks=num_ranks)
    time.sleep(0.3)
    slept_s = clock.lap()
    passed_s = time.monotonic() - began_s
    end = time.thread_time() + 0.1
    while time.thread_time() < end:
        pass
    worked_s = clock.lap()
    assert slept_s <= passed_s - 0.3 + 0.01  # a busy machine may give it no core for a while when it wakes up
    assert worked_s >= 0.095


def test_waiting_for_a_core_counts_only_where_each_rank_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "usable_cores", lambda: 4)
    began_s, ran_before_s = time.monotonic(), time.thread_time()  # first: between two lines it may lose its core
    crowded, fair = BusyClock(num_ranks=5), BusyClock(num_ranks=4)
    made_s = time.monotonic()
    while time.monotonic() < made_s + 0.25:
        pass
    fair_s, crowded_s = fair.lap(), crowded.lap()
    ran_s, passed_s = time.thread_time() - ran_before_s, time.monotonic() - began_s
    assert 0.24 <= fair_s <= passed_s + 0.01
    assert crowded_s == pytest.approx(ran_s, abs=0.01)
