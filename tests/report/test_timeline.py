"""The drawn schedules are the published ones: their bubbles are the closed forms."""

from __future__ import annotations

from itertools import pairwise

import pytest

from launcher.report.timeline import timeline


@pytest.mark.parametrize(("pp", "count"), [(1, 4), (2, 2), (4, 8), (8, 24), (3, 7)])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_the_bubble_is_pp_minus_one_forward_and_backward_times(schedule: str, pp: int, count: int) -> None:
    boxes = timeline(schedule, pp=pp, virtual_stages=1, num_micro_batches=count, backward=2.0)
    assert max(box.end for box in boxes) == pytest.approx(3 * count + 3 * (pp - 1))


@pytest.mark.parametrize(("pp", "virtual_stages", "count"), [(2, 2, 4), (4, 2, 8), (4, 4, 16), (8, 3, 24)])
def test_interleaving_divides_the_bubble_by_the_virtual_stages(pp: int, virtual_stages: int, count: int) -> None:
    boxes = timeline("interleaved", pp=pp, virtual_stages=virtual_stages, num_micro_batches=count, backward=2.0)
    assert max(box.end for box in boxes) == pytest.approx(3 * count + 3 * (pp - 1) / virtual_stages)


def test_zero_bubble_h1_hides_weight_gradients_in_the_bubble() -> None:
    plain = max(box.end for box in timeline("1f1b", pp=4, virtual_stages=1, num_micro_batches=12))
    zero = max(box.end for box in timeline("zb_h1", pp=4, virtual_stages=1, num_micro_batches=12))
    assert zero == pytest.approx(plain - 2 * (4 - 1))  # (pp-1)(F+B-W) is left of (pp-1)(F+B+W)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zb_h1", "interleaved"])
def test_no_rank_runs_two_boxes_at_once_and_none_is_lost(schedule: str) -> None:
    stages = 2 if schedule == "interleaved" else 1
    boxes = timeline(schedule, pp=4, virtual_stages=stages, num_micro_batches=8)
    for rank in range(4):
        mine = sorted((b for b in boxes if b.rank == rank), key=lambda b: b.start)
        assert all(a.end <= b.start + 1e-9 for a, b in pairwise(mine))
        assert len(mine) == 8 * stages * (3 if schedule == "zb_h1" else 2)
