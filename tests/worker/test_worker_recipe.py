"""`launcher run` trains the gpt recipe end to end: document, metrics, resume, traces, and a script of one's own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import preloaded
import pytest

from launcher.run.folder import RunFolder
from launcher.run.metrics import read_steps, summarise_steps
from launcher.run.spans import read_spans

LAUNCHER = [sys.executable, "-c", "from launcher.cli import main; raise SystemExit(main())", "run", "tracking=none"]
TWO_RANKS = [
    "cluster.node.num_gpus=2",
    "layout.tp=1",
    "layout.dp=1",
    "layout.pp=2",
    "model.seq_len=32",
    "model.layers=2",
]


def launch(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [*LAUNCHER, *TWO_RANKS, f"run_dir={folder}", *overrides]
    return preloaded.run(command, capture_output=True, text=True, timeout=200, cwd=folder.parent)


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """result.json, which the last line on stdout names and has in short."""
    assert done.returncode == 0, done.stderr[-3000:]
    short = json.loads(done.stdout.strip().splitlines()[-1])
    found: dict[str, Any] = json.loads(Path(short.pop("result")).read_text())
    ends = {name: found["losses"][name] for name in ("first", "last")}
    assert short == {name: found[name] for name in short} | {"losses": ends}
    return found


@pytest.mark.slow
def test_a_run_ends_with_its_document_resumes_by_itself_and_profiles(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ["train.lr_schedule=constant", "train.checkpoint_every=2"]
    first = launch(folder, *options, "train.steps=6", "train.profile=[3]", "train.profile_ranks=[0,1]")
    found = document(first)
    losses = found["losses"]["all"]
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert (found["layout"]["pp"], found["world_size"], found["engine"]) == (2, 2, "torch")
    assert found["measured_step_time_s"] > 0 and found["predicted_step_time_s"] > 0 and found["mfu"] is None
    traces = sorted(path.name for path in (folder / "traces").iterdir())
    assert traces == ["step-000003-rank-00000.json", "step-000003-rank-00001.json"]
    assert json.loads((folder / "traces" / traces[0]).read_text())["traceEvents"]

    again = launch(folder, *options, "train.steps=8")
    assert document(again)["resumed_after_step"] == 6
    assert document(again)["measured_step_time_s"] == summarise_steps(read_steps(folder / "metrics.jsonl")).step_s
    assert "(median without the first 3 steps of each start)" in again.stderr
    assert "going on after step 6" in again.stderr
    steps = read_steps(RunFolder(folder).metrics)
    assert [step.step for step in steps] == list(range(1, 9))
    assert {"data_s", "forward_backward_s", "exposed_pp_s", "optimizer_s"} <= set(steps[0].split_s)
    assert None not in (steps[0].loss, steps[0].grad_norm, steps[0].lr, steps[0].step_s, steps[0].memory_bytes)


@pytest.mark.slow
def test_the_deepspeed_engine_trains_the_same_and_keeps_its_json(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    torch_run = document(launch(tmp_path / "torch", "train.steps=3", "train.spans=[2]"))
    words = ["train.steps=3", "train.spans=[2]", "train.engine=deepspeed"]
    deepspeed_run = document(launch(tmp_path / "deepspeed", *words))
    assert deepspeed_run["losses"]["all"] == pytest.approx(torch_run["losses"]["all"], abs=1e-4)
    kept = json.loads((tmp_path / "deepspeed" / "deepspeed.json").read_text())
    assert kept["zero_optimization"]["stage"] == deepspeed_run["layout"]["zero_stage"] == 1
    passes = [
        {
            (r.rank, s.kind, s.stage, s.micro_batch)
            for r in read_spans(RunFolder(tmp_path / engine).spans)
            for s in r.spans
        }
        for engine in ("torch", "deepspeed")
    ]
    of_passes = [{span for span in found if span[1] in ("F", "B", "optimizer")} for found in passes]
    assert of_passes[0] == of_passes[1]
    assert {span[0] for span in of_passes[0]} == {0, 1}


SCRIPT = """
import torch
from launcher.worker import session

run = session.start()
mesh, tracker, checkpoints = run.mesh, run.tracker, run.checkpoints
weight = torch.zeros(3)
done = run.resume({"weight": weight})
checkpoints.save(done + 1, {"weight": weight + run.world_size})
tracker.log(done + 1, {"loss": float(weight.sum())})
run.say(f"mesh {mesh.mesh_dim_names} {tuple(mesh.shape)} weight {weight.tolist()}")
run.close()
"""


@pytest.mark.slow
def test_three_lines_give_a_script_mesh_tracker_and_checkpoints(tmp_path: Path) -> None:
    script, folder = tmp_path / "mine.py", tmp_path / "run"
    script.write_text(SCRIPT)
    first = launch(folder, f"script={script}")
    assert first.returncode == 0, first.stderr[-3000:]
    assert "weight [0.0, 0.0, 0.0]" in first.stderr
    again = launch(folder, f"script={script}", "launch.preload=[launcher.worker.session]")  # as the recipes have it
    assert "weight [2.0, 2.0, 2.0]" in again.stderr and "'pp'" in again.stderr
    assert [step.loss for step in read_steps(RunFolder(folder).metrics)] == [0.0, 6.0]
