"""Pipeline schedules: closed forms against the papers and against an event simulation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.cost.pipeline import in_flight, pipeline_time


def uniform(schedule: str, *, pp: int, m: int, forward: float = 1.0, backward: float = 2.0, v: int = 1) -> float:
    return pipeline_time(
        schedule, forward_s=[forward] * pp, backward_s=[backward] * pp, weight_s=[backward / 2] * pp,
        num_micro_batches=m, virtual_stages=v,
    ).total_s  # fmt: skip


def order_1f1b(stage: int, pp: int, m: int) -> list[tuple[str, int]]:
    """What a stage runs under 1F1B: warm-up forwards, then one backward to each forward, then the rest."""
    warm = min(pp - stage - 1, m)
    steps = [("f", i) for i in range(warm)]
    for i in range(m - warm):
        steps += [("f", warm + i), ("b", i)]
    return steps + [("b", i) for i in range(m - warm, m)]


def order_gpipe(stage: int, pp: int, m: int) -> list[tuple[str, int]]:
    return [("f", i) for i in range(m)] + [("b", i) for i in range(m)]


Order = Callable[[int, int, int], list[tuple[str, int]]]


def simulate(order: Order, forward: list[float], backward: list[float], m: int) -> tuple[float, list[int]]:
    """Seconds of all micro-batches, and the most that each stage holds, by running every step when it can."""
    pp = len(forward)
    todo = [order(stage, pp, m) for stage in range(pp)]
    done: dict[tuple[str, int, int], float] = {}
    clock, held, most = [0.0] * pp, [0] * pp, [0] * pp
    while any(todo):
        for stage in range(pp):
            while todo[stage]:
                kind, i = todo[stage][0]
                before = (kind, i, stage - 1 if kind == "f" else stage + 1)
                at_end = stage == (0 if kind == "f" else pp - 1)
                if not at_end and before not in done:
                    break
                ready = 0.0 if at_end else done[before]
                clock[stage] = max(clock[stage], ready) + (forward[stage] if kind == "f" else backward[stage])
                done[kind, i, stage] = clock[stage]
                held[stage] += 1 if kind == "f" else -1
                most[stage] = max(most[stage], held[stage])
                todo[stage].pop(0)
    return max(clock), most


@pytest.mark.parametrize(("pp", "m"), [(1, 4), (2, 2), (4, 4), (4, 16), (8, 3)])
def test_equal_stages_wait_p_minus_one_slots(pp: int, m: int) -> None:
    # Narayanan et al. 2021, section 2.2: bubble over ideal time is (p - 1) / m.
    assert uniform("1f1b", pp=pp, m=m) == pytest.approx(3.0 * (m + pp - 1))
    assert uniform("gpipe", pp=pp, m=m) == uniform("1f1b", pp=pp, m=m)


@pytest.mark.parametrize("v", [2, 3, 4])
def test_interleaving_divides_the_bubble_by_the_chunks(v: int) -> None:
    assert uniform("interleaved", pp=4, m=8, v=v) == pytest.approx(3.0 * (8 + 3 / v))


def test_zero_bubble_h1_waits_forward_plus_input_gradient_less_weight_gradient() -> None:
    # Qi et al. 2024, table 2: (p - 1)(T_F + T_B - T_W), with T_B the input's gradient alone; a third of 1F1B's when
    # all are equal.
    assert uniform("zb_h1", pp=4, m=8) == pytest.approx(3.0 * 8 + 3 * (1 + 1 - 1))


@given(pp=st.integers(1, 6), m=st.integers(1, 12), forward=st.floats(0.1, 3), backward=st.floats(0.1, 5))
@settings(deadline=None)
def test_equal_stages_agree_with_an_event_simulation(pp: int, m: int, forward: float, backward: float) -> None:
    for schedule, order in (("1f1b", order_1f1b), ("gpipe", order_gpipe)):
        simulated, most = simulate(order, [forward] * pp, [backward] * pp, m)
        assert uniform(schedule, pp=pp, m=m, forward=forward, backward=backward) == pytest.approx(simulated)
        assert most == [in_flight(schedule, stage=s, num_stages=pp, num_micro_batches=m) for s in range(pp)]


@given(pp=st.integers(2, 6), extra=st.integers(0, 12), heavy=st.integers(0, 5), factor=st.floats(1.0, 2.0))
@settings(deadline=None)
def test_one_heavy_stage_is_exact_at_the_end_and_never_optimistic(
    pp: int, extra: int, heavy: int, factor: float
) -> None:
    # The last stage has the head, so that it is the busiest of almost every split.
    forward = [1.0] * pp
    forward[heavy % pp] = factor
    backward = [2 * f for f in forward]
    m = pp + extra
    simulated, _ = simulate(order_1f1b, forward, backward, m)
    estimated = pipeline_time(
        "1f1b", forward_s=forward, backward_s=backward, weight_s=forward, num_micro_batches=m, virtual_stages=1
    ).total_s
    if heavy % pp == pp - 1:
        assert estimated == pytest.approx(simulated)
    assert simulated <= estimated * (1 + 1e-9)
    assert estimated - simulated <= 3.0 * (pp - 1) * (factor - 1) + 1e-9


def test_interleaved_ranks_hold_megatrons_warm_up_chunks() -> None:
    # Megatron-LM: 2(p - rank - 1) + (v - 1)p warm-up chunks, and the one that runs; never more than there are.
    assert in_flight("interleaved", stage=0, num_stages=4, num_micro_batches=16, virtual_stages=2) == 11 / 2
    assert in_flight("interleaved", stage=3, num_stages=4, num_micro_batches=16, virtual_stages=2) == 5 / 2
    assert in_flight("interleaved", stage=0, num_stages=4, num_micro_batches=4, virtual_stages=2) == 4
