"""The clock that leaves waiting out."""

from __future__ import annotations

import time

import pytest

from launcher import env
from launcher.worker.metrics.own_time import BusyClock


@pytest.mark.parametrize("num_ranks", [1, 100_000], ids=["a core for each rank", "fewer cores than ranks"])
def test_work_counts_and_sleep_does_not(num_ranks: int) -> None:
    clock = BusyClock(num_ranks=num_ranks)
    time.sleep(0.3)
    slept_s = clock.lap()
    end = time.thread_time() + 0.1
    while time.thread_time() < end:
        pass
    worked_s = clock.lap()
    assert slept_s < 0.1
    assert worked_s >= 0.095


def test_waiting_for_a_core_counts_only_where_each_rank_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "usable_cores", lambda: 4)
    crowded, fair = BusyClock(num_ranks=5), BusyClock(num_ranks=4)
    end = time.monotonic() + 0.2
    while time.monotonic() < end:
        pass
    assert fair.lap() == pytest.approx(0.2, abs=0.1)
    assert crowded.lap() <= 0.21
