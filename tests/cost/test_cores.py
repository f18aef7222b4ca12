"""CPU ranks: work over cores against the critical path, collectives by group, ZeRO's calls counted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launcher.cluster.measured import EngineSeconds
from launcher.config.compose import load
from launcher.cost import Estimate
from launcher.cost.collectives import collective_s
from launcher.cost.constants import DEFAULT
from launcher.cost.cores import ENGINE
from launcher.cost.fit import NAMES, WAITS, StepSample, core_seconds, fit_engine, non_negative, step_seconds
from launcher.cost.model import CostModel
from launcher.cost.network import Group, fabric_of
from launcher.layout import Layout
from launcher.layout.job import Job

# Measured here with recipe tune: gpt_tiny, 16 sequences a step, 8 ranks on 2 cores, fp32, micro batches of one; core
# seconds of all ranks over two cores, in ms. Other work ran next to it (load 8 to 18).
MEASURED = {
    (1, 1, 8, 0): 162, (1, 1, 8, 1): 269, (1, 1, 8, 2): 363, (1, 1, 8, 3): 550, (1, 2, 4, 0): 171, (1, 2, 4, 1): 247,
    (1, 4, 2, 0): 222, (1, 4, 2, 1): 319, (1, 4, 2, 3): 359, (2, 1, 4, 0): 457, (2, 1, 4, 1): 551, (2, 1, 4, 2): 682,
    (2, 1, 4, 3): 908, (2, 2, 2, 0): 480, (2, 2, 2, 1): 622, (2, 2, 2, 3): 693, (2, 4, 1, 0): 628, (4, 1, 2, 0): 1181,
    (4, 1, 2, 1): 1444, (4, 1, 2, 2): 1775, (4, 1, 2, 3): 2124, (4, 2, 1, 0): 1451,
}  # fmt: skip


def job(*words: str) -> Job:
    return load(["cluster.node.cores=2", *words]).job


def layout(tp: int, pp: int, dp: int, zero: int = 0, **more: int) -> Layout:
    return Layout(tp=tp, pp=pp, dp=dp, zero_stage=zero, micro_batch=more.pop("micro_batch", 1), **more)


def estimate(shape: Layout, *words: str) -> Estimate:
    return CostModel(job(*words)).estimate(shape)


def test_layouts_are_in_the_order_that_was_measured() -> None:
    model = CostModel(job())
    predicted = [model.estimate(layout(*degrees)).step_time_s for degrees in MEASURED]
    places = [[sorted(values).index(value) for value in values] for values in (predicted, list(MEASURED.values()))]
    n = len(MEASURED)
    off = sum((a - b) ** 2 for a, b in zip(*places, strict=True))

    assert 1 - 6 * off / (n * (n * n - 1)) > 0.95
    best = min(zip(predicted, MEASURED.values(), strict=True))[1]
    assert best <= 1.1 * min(MEASURED.values())


def test_a_call_over_more_ranks_costs_each_of_them_more() -> None:
    fabric = fabric_of(job().cluster, DEFAULT)
    two, four, eight = (collective_s(fabric, Group(n, 1, n, 1), "all_reduce", 1024) for n in (2, 4, 8))

    assert two < four < eight
    assert eight > 3 * two


def test_each_zero_stage_costs_its_calls() -> None:
    times = [estimate(layout(1, 1, 8, zero)).step_time_s for zero in range(4)]
    assert times == sorted(times)
    assert times[1] > 1.2 * times[0]


def test_a_bubble_costs_little_on_shared_cores_and_much_on_cores_of_their_own() -> None:
    alone, shared, own = (estimate(layout(1, 4, 2), f"cluster.node.cores={cores}") for cores in (1, 2, 8))

    assert alone.time["bubble"] == pytest.approx(0)
    assert shared.time["bubble"] / shared.step_time_s < 0.6 * own.time["bubble"] / own.step_time_s
    assert own.time["bubble"] > 0.2 * own.step_time_s


@pytest.mark.parametrize("shape", [layout(1, 1, 8), layout(1, 4, 2), layout(2, 2, 2, 1), layout(4, 1, 2)])
def test_a_step_is_between_the_even_share_of_the_work_and_grahams_bound(shape: Layout) -> None:
    engine = [f"cluster.measured.engine.{name}=1" for name in ("layer_ms", "micro_batch_ms", "step_ms", "unit_ms")]
    words = [*engine, "cluster.measured.engine.call_ms=0"]  # a call costs more where more ranks share a core

    def seconds(cores: int, share: float) -> float:
        waits = (f"cluster.measured.engine.{name}={share}" for name in ("idle", "chain"))
        return estimate(shape, *words, *waits, f"cluster.node.cores={cores}").step_time_s

    one, many = seconds(1, 1), seconds(64, 1)  # of 64 cores each rank has one: the critical path
    assert seconds(2, 1) == pytest.approx(one / 2 + many / 2)
    assert seconds(2, 0) == pytest.approx(one / 2)
    assert seconds(2, 0.2) == pytest.approx(one / 2 + 0.2 * many / 2)
    assert one / 8 <= many * 1.001
    assert seconds(7, 0) >= many * 0.999  # seven cores for eight ranks: no rank is faster than its own chain


def test_a_call_within_a_step_costs_every_rank_of_its_group() -> None:
    """tp2 without pipeline on two cores: so many collectives of a layer, and each lengthens the step by its ranks."""
    engine = "cluster.measured.engine.layer_ms=1", "cluster.measured.engine.micro_batch_ms=1"
    words = [*engine, "cluster.measured.engine.step_ms=1", "cluster.measured.engine.unit_ms=1"]

    def more(cores: int) -> float:
        """Seconds that calls of a millisecond for each other rank on a core add to a step."""
        each = (f"cluster.node.cores={cores}", "cluster.measured.engine.chain=1", "cluster.measured.engine.idle=1")
        times = [estimate(layout(2, 1, 4), *words, *each, f"cluster.measured.engine.call_ms={c}") for c in (0, 1)]
        return times[1].step_time_s - times[0].step_time_s

    calls_of_layers = 4 * 4 * 4  # two forward and two backward, of four layers, in four micro-batches

    assert 8 * 7 * calls_of_layers * 1e-3 < more(1) < 8 * 7 * (calls_of_layers + 40) * 1e-3
    assert more(2) == pytest.approx(more(1) * 3 / 7 * (1 / 2 + 1 / 2 / 8))  # three others on a core, two cores
    assert more(8) == pytest.approx(0)


def test_a_collective_is_a_longer_chain_than_what_one_rank_works_in_it() -> None:
    """Waiting leaves cores idle in proportion to a layout's collectives, and none where one core has all the work."""
    engine = [f"cluster.measured.engine.{name}=1" for name in ("layer_ms", "micro_batch_ms", "step_ms", "call_ms")]

    def idle(shape: Layout, chain: int, cores: int = 2) -> float:
        words = (f"cluster.measured.engine.chain={chain}", f"cluster.node.cores={cores}")
        return estimate(shape, *engine, "cluster.measured.engine.unit_ms=1", *words).time["bubble"]

    few, many = layout(1, 1, 8), layout(4, 1, 2)
    assert idle(many, 3) - idle(many, 1) > 5 * (idle(few, 3) - idle(few, 1)) > 0
    assert idle(many, 3) - idle(many, 2) == pytest.approx(idle(many, 2) - idle(many, 1))
    assert idle(many, 3, cores=1) == pytest.approx(0)


def test_zero_costs_its_hooks_in_every_micro_batch() -> None:
    """ZeRO-1 gathers once a step, and yet costs more in two micro-batches than in one."""
    engine = [f"cluster.measured.engine.{name}=0.001" for name in ("layer_ms", "micro_batch_ms", "step_ms")]
    words = [*engine, "cluster.measured.engine.call_ms=0", "cluster.measured.engine.chain=1", "cluster.node.cores=1"]

    def hooks(shape: Layout) -> float:
        times = [estimate(shape, *words, f"cluster.measured.engine.unit_ms={unit}").step_time_s for unit in (0, 1)]
        return times[1] - times[0]

    units = 5  # four layers and what is around them
    assert hooks(layout(1, 1, 8, 1)) == pytest.approx(8 * 1e-3 * (2 * units + 2 * units))  # two micro-batches
    assert hooks(layout(1, 1, 8, 1, micro_batch=2)) == pytest.approx(8 * 1e-3 * (2 * units + units))
    assert hooks(layout(1, 1, 8, 0)) == pytest.approx(0)


def test_the_parts_add_up_to_the_step() -> None:
    for shape in (layout(2, 2, 2, 1), layout(1, 4, 2, 3), layout(1, 1, 8)):
        for cores in (2, 8):
            found = estimate(shape, f"cluster.node.cores={cores}")
            parts = [seconds for name, seconds in found.time.items() if "hidden" not in name]
            assert sum(parts) == pytest.approx(found.step_time_s)


def test_a_measured_rate_of_a_core_counts_for_the_ranks_that_share_it() -> None:
    slow, fast = (estimate(layout(1, 1, 8), f"cluster.node.gpu.gemm_tflops={{fp32: {r}}}") for r in (0.02, 0.2))
    assert slow.step_time_s > 2 * fast.step_time_s


@pytest.mark.parametrize(("idle", "chain"), [(0.6, 3.5), (0.05, 0.4), (0.0, 0.0)], ids=["busy", "quiet", "filled"])
def test_the_engines_seconds_are_found_again_from_steps(idle: float, chain: float) -> None:
    true = EngineSeconds(
        layer_s=2e-3, micro_batch_s=1e-3, step_s=5e-3, unit_s=0.7e-3, call_s=0.4e-3, element_s=30e-9, byte_s=0.3e-9,
        idle=idle, chain=chain,
    )  # fmt: skip
    shapes = [layout(*each) for each in ((1, 1, 8), (1, 1, 8, 1), (1, 1, 8, 3), (1, 2, 4), (2, 1, 4), (2, 1, 4, 1))]
    shapes.append(layout(1, 1, 8, micro_batch=2))
    samples = [StepSample(job(), shape, 1.0) for shape in shapes]
    samples += [StepSample(job("model.hidden=256"), layout(1, 1, 8, zero), 1.0) for zero in (0, 3)]
    samples += [StepSample(job("cluster.node.num_gpus=4"), layout(*each), 1.0) for each in ((1, 1, 4), (4, 1, 1))]
    samples = [
        replace(sample, core_s=core_seconds(sample, true), step_s=step_seconds(sample, true)) for sample in samples
    ]
    found = fit_engine(samples)

    for name in (*NAMES, *WAITS):
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=1e-3, abs=1e-9)
    assert found.error < 1e-6


def test_few_trials_correct_the_usual_seconds_and_do_not_replace_them() -> None:
    """`launcher tune` tries six plans, fewer than there are seconds to tell apart: others must not go wrong for it."""
    true = EngineSeconds(**{name: 1.3 * getattr(ENGINE, name) for name in (*NAMES, *WAITS)})
    tried = [layout(*each) for each in ((1, 1, 8), (1, 2, 4), (1, 4, 2), (1, 2, 4, 1))]
    scatter = (1.04, 0.97, 1.0, 1.02)
    found = fit_engine(
        [
            StepSample(job(), shape, core_seconds(exact, true) * off, step_seconds(exact, true) * off)
            for shape, off in zip(tried, scatter, strict=True)
            if (exact := StepSample(job(), shape, 1.0))
        ]
    )
    for shape in (layout(2, 1, 4), layout(4, 1, 2, 1), layout(1, 1, 8, 3)):
        other = StepSample(job(), shape, 1.0)
        assert core_seconds(other, found) == pytest.approx(core_seconds(other, true), rel=0.2)


def test_no_second_is_negative() -> None:
    assert non_negative([[1, 1], [1, 2], [1, 3]], [3, 2, 1]) == [pytest.approx(2), 0]
