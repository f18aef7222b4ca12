"""A DeepSpeed configuration of the user's own: under the plan's keys, conflicts named, its features used for real."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import preloaded
import pytest

from launcher import Job
from launcher.cli import main
from launcher.errors import InputError
from launcher.planner.deepspeed_config import deepspeed_config, full_config
from launcher.run.folder import RunFolder

WORDS = ["train.engine=deepspeed", "cluster.node.num_gpus=2", "layout.tp=1", "layout.pp=1", "layout.zero_stage=1",
         "layout.micro_batch=2", "train.global_batch=8"]  # fmt: skip


def full(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    file = folder / "ds.json"
    file.write_text(json.dumps(config))
    plan = Job.from_overrides([*WORDS, f"train.ds_config={file}"]).plan()
    return full_config(plan, plan.options.train)


def test_what_the_plan_does_not_say_is_taken_over(tmp_path: Path) -> None:
    plan = Job.from_overrides(WORDS).plan()
    own = deepspeed_config(plan, plan.options.train)
    theirs = {
        "zero_optimization": {"stage": "auto", "reduce_bucket_size": 1000}, "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": "auto", "csv_monitor": {"enabled": True}, "wall_clock_breakdown": True,
    }  # fmt: skip
    found = full(theirs, tmp_path)
    assert found["zero_optimization"] == {**own["zero_optimization"], "reduce_bucket_size": 1000}
    assert found["train_micro_batch_size_per_gpu"] == 2
    assert found["csv_monitor"] == {"enabled": True} and found["wall_clock_breakdown"] is True
    assert "train_batch_size" not in found


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage is 3 there and 1 in the plan"),
        ({"train_micro_batch_size_per_gpu": 4}, "train_micro_batch_size_per_gpu is 4 there and 2 in the plan"),
        ({"train_batch_size": 99}, "train_batch_size is 99 there and 8 in the plan"),
        ({"fp16": {"enabled": True}}, "fp16.enabled is True there and False in the plan"),
        ({"optimizer": {"type": "Adam"}}, "optimizer is the plan's"),
    ],
)
def test_what_contradicts_the_plan_is_named(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said.replace(".", r"\.")):
        full(config, tmp_path)


def test_all_conflicts_are_named_at_once_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ds.json").write_text('{"train_batch_size": 1, "zero_optimization": {"stage": 2}}')
    assert main(["run", *WORDS, "train.ds_config=ds.json", "dry_run=true"]) == 2
    assert "2 problems" in capsys.readouterr().err
    assert main(["run", "train.ds_config=ds.json", "dry_run=true"]) == 2
    assert "is for train.engine=deepspeed" in capsys.readouterr().err
    assert main(["run", *WORDS, "train.ds_config=none.json", "dry_run=true"]) == 2
    assert "cannot read none.json" in capsys.readouterr().err


@pytest.mark.slow
def test_a_feature_of_deepspeed_works_by_its_own_configuration(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    config = {"csv_monitor": {"enabled": True, "output_path": str(tmp_path / "csv"), "job_name": "mine"}}
    (tmp_path / "ds.json").write_text(json.dumps(config))
    words = ["run", *WORDS, "train.ds_config=ds.json", "train.steps=2", "tracking=none", "run_dir=run"]
    words += ["model.layers=2", "model.seq_len=32"]
    done = preloaded.run(
        [sys.executable, "-m", "launcher.cli", *words], cwd=tmp_path, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "csv").rglob("*.csv")), "DeepSpeed wrote no file of its monitor"
    used = json.loads(RunFolder(tmp_path / "run").deepspeed_config.read_text())
    assert used["csv_monitor"] == config["csv_monitor"]
