"""`launcher tune`: which plans are tried, what their trials say, and that it really runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import preloaded
import pytest

from launcher.cli import main
from launcher.commands.calibrate import learned_from
from launcher.commands.measuring import TrialShape, write_trials
from launcher.commands.trials import step_times
from launcher.config.compose import load
from launcher.cost.model import CostModel
from launcher.planner import Plan, read_plan, write_plan
from launcher.planner.tuning import Trial, candidates, joined, placed, winner
from launcher.run.folder import RunFolder
from launcher.run.result import write_result

FOUR = ("cluster.node.num_gpus=4", "train.global_batch=8")
TP4 = ("layout.tp=4", "layout.pp=1", "layout.dp=1", "layout.zero_stage=0", "layout.micro_batch=2")


def plans(*words: str, top: int = 6) -> list[Plan]:
    settings = load([*FOUR, *words])
    return candidates(settings.job, settings.options.layout, settings.run_options, top=top)


def said(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "launcher.cli", *words]
    done = preloaded.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def tuned(folder: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher.cli", "tune", *FOUR, "tracking=none", *words]
    done = preloaded.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == code, done.stderr
    return done


def test_the_most_promising_plans_are_tried_the_best_first() -> None:
    found = plans()
    times = [plan.estimate["step_time_s"] for plan in found]

    assert len(found) == 6
    assert times == sorted(times)
    assert len({plan.layout for plan in found}) == len(found)


def test_a_clusters_default_layout_does_not_limit_what_is_tuned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "cluster=cpu", "model=gpt_tiny", "dry_run=true", "output=json"]) == 0
    layouts = [trial["layout"] for trial in json.loads(capsys.readouterr().out)["trials"]]
    assert len({tuple(layout.split()[:3]) for layout in layouts}) > 1, layouts


def test_a_plan_that_was_stopped_or_failed_wins_nothing() -> None:
    first, second, *_ = plans()
    stopped, failed = Trial(first, 0.1, 1, "stopped early: too slow"), Trial(first, None, note="failed")
    fair = Trial(second, 0.3, 8)

    assert winner([stopped, failed, fair]) is fair
    assert winner([stopped, failed]) is None


def test_of_several_rounds_the_median_counts_and_the_best_round_wins_nothing() -> None:
    """One plan has a lucky round, the other a disturbed one: what a training would see decides."""
    first, second, *_ = plans()

    def rounds(plan: Plan, *seconds: float) -> list[Trial]:
        return [Trial(plan, each, 4) for each in seconds]

    lucky, steady = joined(rounds(first, 0.10, 0.20, 0.21)), joined(rounds(second, 0.15, 0.16, 0.90))
    assert (lucky.step_time_s, steady.step_time_s, steady.steps) == (0.20, 0.16, 12)
    assert winner([lucky, steady]) is steady
    slow = Trial(first, 0.4, 1, "stopped early: too slow")
    assert joined([*rounds(first, 0.2, 0.3), slow]).step_time_s == pytest.approx(0.25)
    assert not joined([slow, slow]).counts
    assert joined(rounds(first, 0.2)) == Trial(first, 0.2, 4)


def test_a_programs_arguments_take_the_layouts_numbers() -> None:
    plan = plans("layout.tp=2", "layout.dp=2", "layout.pp=1")[0]
    assert placed(["--tp={tp}", "--dp", "{dp}", "{other}"], plan) == ["--tp=2", "--dp", "2", "{other}"]


def test_step_times_are_read_from_what_a_program_prints(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.logs.mkdir()
    run.rank_log(0).write_text('step_time_s=0.5\nloss 3\n{"step": 2, "step_time_s": 2.5e-1}\nstep_time_s: .\n')
    assert step_times(run) == [0.5, 0.25]
    run.metrics.write_text('{"step": 1, "step_s": 0.75}\n')  # of `session`: it counts first
    assert step_times(run) == [0.75]


def test_what_trials_showed_becomes_a_calibration_that_is_planned_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps twice as long as the estimates: the cluster file that tune writes brings the estimates near them."""
    monkeypatch.chdir(tmp_path)
    settings, tried = load([*FOUR, "cluster.node.cores=2"]), plans("cluster.node.cores=2")
    rows = []
    for number, plan in enumerate(tried):
        seconds = 2 * plan.estimate["step_time_s"]
        rows.append({"plan": str(write_plan(plan, tmp_path / f"{number}.json")), "steps_s": [seconds] * 3})
        rows[-1]["cpu_s"] = [1.8 * seconds] * 3
    run = RunFolder(tmp_path / "run-1")
    run.path.mkdir()
    write_result({"recipe": "tune", "world_size": 4, "results": rows}, run.result, short={})

    [line] = learned_from([run.path], settings)
    assert "configs/cluster/cpu_measured.yaml: plan with cluster=cpu_measured" in line
    believed = CostModel(load([*FOUR, "cluster=cpu_measured", "cluster.node.cores=2"]).job)
    for plan in tried:
        assert believed.step_s(plan.layout) == pytest.approx(2 * plan.estimate["step_time_s"], rel=0.25)


@pytest.mark.slow
def test_what_was_measured_and_calibrated_here_is_tuned_in_warm_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = (
        "recipe=collectives",
        "recipe.operations=[all_reduce]",
        "recipe.sizes=64K:1M:16",
        "recipe.seconds=0",
        "run_dir=links",
    )
    said(tmp_path, "run", *FOUR[:1], *sizes, "tracking=none")
    said(tmp_path, "calibrate", "links", *FOUR[:1], "name=here")
    words = (
        "cluster=here",
        "top=3",
        "steps=2",
        "rounds=2",
        "patience=100",
        "run_dir=trials",
        "save=best.json",
        "output=json",
    )
    done = tuned(tmp_path, *words)
    document: dict[str, Any] = json.loads(done.stdout)
    trials = document["trials"]

    assert len(trials) == 3
    assert all(trial["measured_step_time_s"] > 0 and trial["steps"] == 4 for trial in trials)  # two rounds
    fastest = min(trials, key=lambda trial: trial["measured_step_time_s"])
    assert read_plan(tmp_path / "best.json").layout.brief() == fastest["layout"]
    assert read_plan(tmp_path / "trials" / "best.json") == read_plan(tmp_path / "best.json")
    starts = list((tmp_path / "trials").glob("run-*"))
    assert len(starts) == 1  # all of them in one start of the ranks
    order = [Path(row["plan"]).name for row in json.loads((starts[0] / "result.json").read_text())["results"]]
    assert order == [f"{turn:03d}-{plan:03d}.json" for turn in range(2) for plan in range(3)]  # interleaved

    [curve] = read_plan(tmp_path / "best.json").job.cluster.measured.collectives
    assert (curve.operation, curve.ranks, curve.sizes) == ("all_reduce", 4, (65536, 1048576))
    monkeypatch.chdir(tmp_path)
    [believed], [assumed] = plans("cluster=here", *TP4, top=1), plans(*TP4, top=1)
    assert believed.estimate["step_time_s"] != assumed.estimate["step_time_s"]


@pytest.mark.slow
def test_a_hopeless_plan_is_stopped_after_its_first_timed_step(tmp_path: Path) -> None:
    """A model of sixteen times as many layers, after the usual one, in the same rank.

    One thread: on busy cores two wait for each other, and a step of the usual one is now and then as long.
    """
    one = ("cluster=cpu", "cluster.node.num_gpus=1", "train.global_batch=4", "launch.omp_num_threads=1")
    write_trials((TrialShape(), TrialShape(deeper=16)), 1, one, tmp_path / "trials")
    words = [*one, "recipe=tune", "recipe.trials=trials", "recipe.steps=3", "recipe.patience=1.5", "tracking=none"]
    command = [sys.executable, "-m", "launcher.cli", "run", *words, "run_dir=run"]
    done = preloaded.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr

    rows = json.loads(RunFolder(tmp_path / "run").result.read_text())["results"]
    assert [(row["stopped_early"], len(row["steps_s"])) for row in rows] == [(False, 3), (True, 1)]
    assert "stopped: too slow" in done.stdout + done.stderr


SCRIPT = """\
import os, sys, time
seconds = 0.02 * int(sys.argv[1])
for step in range(1000):
    time.sleep(seconds)
    if os.environ["RANK"] == "0":
        print(f"step_time_s={seconds}", flush=True)
"""


@pytest.mark.slow
def test_tuning_runs_a_script_once_for_each_plan_and_stops_it(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    pins = (
        "model=gpt_tiny",
        "layout.pp=1",
        "layout.cp=1",
        "layout.zero_stage=0",
        "layout.micro_batch=1",
        "layout.recompute=none",
    )
    words = ("script=train.py", *pins, "layout.sequence_parallel=false", "layout.schedule=1f1b", "top=2", "steps=3")
    done = tuned(tmp_path, *words, "patience=1.5", "output=json", "--", "{tp}")
    trials = json.loads(done.stdout)["trials"]

    assert len(trials) == 2
    measured = {int(trial["layout"].split()[0].removeprefix("tp")): trial["measured_step_time_s"] for trial in trials}
    assert len(measured) == 2
    assert all(seconds == 0.02 * tp for tp, seconds in measured.items())


def test_what_trains_nothing_or_needs_other_nodes_is_not_tuned(tmp_path: Path) -> None:
    assert "recipe=gemm trains nothing" in tuned(tmp_path, "recipe=gemm", code=2).stderr
    more = ("cluster.num_nodes=2", "cluster.node.num_nics=1", "cluster.node.nic_gbps=10")
    assert "are tried on this one" in tuned(tmp_path, *more, "train.global_batch=16", code=2).stderr
    assert list(tmp_path.iterdir()) == []
