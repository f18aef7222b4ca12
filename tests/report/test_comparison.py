"""Two runs against each other: what is worse, and whether that is more than noise."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from launcher import plan as make_plan
from launcher.cli import main
from launcher.planner import write_plan
from launcher.report.comparison import Side, changes, differences
from launcher.run.folder import RunFolder
from launcher.run.metrics import StepMetrics
from launcher.run.result import write_result

JOB = ["cluster=dgx_a100_80g", "model=gpt3_1b3", "train.global_batch=64"]


def a_run(step_s: float, *, spread: float, steps: int = 60, seed: int = 0) -> Side:
    random = Random(seed)
    times = [step_s * (1 + spread * random.uniform(-1, 1)) for _ in range(steps)]
    return Side("run", make_plan(JOB), [StepMetrics(i + 1, loss=3.0, step_s=s) for i, s in enumerate(times)])


@pytest.mark.parametrize(("factor", "spread", "fails"), [
    (1.20, 0.05, True), (1.20, 0.9, False), (1.02, 0.01, False), (0.8, 0.01, False), (1.08, 0.01, True),
])  # fmt: skip
def test_a_slower_run_fails_only_past_the_threshold_and_past_the_noise(
    factor: float, spread: float, fails: bool
) -> None:
    step = changes(a_run(1.0, spread=spread), a_run(factor, spread=spread, seed=1))[0]
    assert step.name == "step time"
    assert step.exceeds(0.05) is fails


def test_a_run_is_the_same_as_itself() -> None:
    run = a_run(1.0, spread=0.1)
    assert {change.verdict for change in changes(run, run)} <= {"the same", ""}


def test_two_steps_say_nothing_about_noise() -> None:
    assert changes(a_run(1.0, spread=0.1, steps=2), a_run(1.0, spread=0.1, steps=2))[0].noise is None


def test_settings_that_differ_are_named_by_their_keys() -> None:
    other = make_plan([*JOB, "model.layers=12", "layout.tp=2", "train.lr=0.1", "stack.year=2021"])
    found = [str(setting) for setting in differences(*(Side("", p) for p in (make_plan([*JOB, "layout.tp=1"]), other)))]
    assert "model.layers: 24 → 12" in found
    assert "layout.tp: 1 → 2" in found
    assert [line for line in found if line.startswith("train.")] == ["train.lr: 0.002 → 0.1"]
    assert [line.partition(":")[0] for line in found if line.startswith("stack")] != []


def test_rates_are_compared_measurement_by_measurement() -> None:
    def rows(factor: float) -> list[dict[str, object]]:
        sizes = [2**power for power in range(10, 20)]
        return [{"operation": "all_reduce", "axis": "tp", "bytes": size, "group_size": 2,
                 "busbw_gbytes_per_s": factor * size / 1e6} for size in sizes]  # fmt: skip

    found = changes(Side("a", make_plan(JOB), rows=rows(1.0)), Side("b", make_plan(JOB), rows=rows(0.9)))
    assert [change.name for change in found] == ["all_reduce over tp, GB/s (10 sizes)"]
    assert found[0].worse == pytest.approx(0.1)
    assert found[0].exceeds(0.05)


def measured_run(folder: Path, factor: float, *, spread: float = 0.0) -> Path:
    """A run folder as a measuring recipe leaves it."""
    random = Random(1)
    run = RunFolder(folder)
    folder.mkdir()
    write_plan(make_plan(JOB), run.plan)
    rows = [
        {"operation": "all_reduce", "axis": "tp", "bytes": 2**power, "group_size": 2,
         "busbw_gbytes_per_s": factor * (1 + spread * random.uniform(-1, 1)) * 2**power / 1e6,
         "link": "nvlink", "per_node": 2, "num_groups": 1, "time_s": 1e-3, "cpu_s": 0.0, "alone_cpu_s": None,
         "expected_s": None, "algbw_gbytes_per_s": 1.0, "slowest": {"ranks": [0, 1], "hosts": ["n1"]}, "wrong": 0}
        for power in range(10, 26)
    ]  # fmt: skip
    write_result({"recipe": "collectives", "results": rows}, run.result, short={})
    return folder


@pytest.mark.parametrize(
    ("factor", "spread", "words", "code"),
    [(0.9, 0.0, ["fail_over=5%"], 1), (0.9, 0.0, [], 0), (0.97, 0.0, ["fail_over=5%"], 0),
     (1.2, 0.0, ["fail_over=5%"], 0), (0.9, 0.8, ["fail_over=5%"], 0)],
)  # fmt: skip
def test_the_command_fails_where_a_measurement_got_worse_past_the_threshold_and_the_noise(
    factor: float, spread: float, words: list[str], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = [str(measured_run(tmp_path / "a", 1.0)), str(measured_run(tmp_path / "b", factor, spread=spread))]
    capsys.readouterr()
    assert main(["compare", *sides, *words, "output=json"]) == code
    assert json.loads(capsys.readouterr().out)["failed"] == code


def test_the_command_fails_where_a_plan_is_slower_past_the_threshold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, tp in (("fast", 1), ("slow", 8)):
        write_plan(make_plan([*JOB, f"layout.tp={tp}", "layout.pp=1"]), tmp_path / f"{name}.json")
    fast, slow = (str(tmp_path / f"{name}.json") for name in ("fast", "slow"))
    assert main(["compare", fast, slow, "fail_over=5%"]) == 1
    assert "worse than fail_over allows: estimated step time" in capsys.readouterr().out
    assert main(["compare", slow, fast, "fail_over=5%"]) == 0
    assert main(["compare", fast, slow, "fail_over=900%"]) == 0
    capsys.readouterr()
    assert main(["compare", fast, slow, "fail_over=much"]) == 2
    assert "fail_over=much is not a fraction" in capsys.readouterr().err
