"""`launcher run -m`: jobs share this machine, each with cores or a slice of its own, and one failure ends no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import preloaded
import pytest

from launcher.cli import main
from launcher.cluster.commands import Output
from launcher.cluster.readers_smi import read_list
from launcher.config.compose import load
from launcher.errors import InputError
from launcher.local.slots import CORES, GPUS, Need, Pool, devices, need_of, pool_of
from launcher.planner.build import make_plan
from launcher.slurm.sweep import SweepMember, write_sweep

JOB = str(Path(__file__).with_name("sweep_job.py"))
TWO_SLICES = """\
GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-838f60d9-651f-9166-ea42-f9da674a6947)
  MIG 3g.40gb     Device  0: (UUID: MIG-ffda444c-c706-57c6-98c9-67c441a0b109)
  MIG 3g.40gb     Device  1: (UUID: MIG-fe9bc608-60f5-5479-8cc4-1827021d27a9)
"""
MIXED = TWO_SLICES + "GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-11111111-651f-9166-ea42-f9da674a6947)\n"
SLICE = "MIG slices 3g.40gb"
SEEDS = "train.seed=1,2,3,4"


def launch(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """In an empty folder, on a machine of which nvidia-smi lists one GPU in two slices."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\n[ \"$1\" = -L ] || exit 9\ncat <<'E'\n{TWO_SLICES}E\n")
    tool.chmod(0o755)
    path = f"{tool.parent}:{os.environ['PATH']}"
    command = [sys.executable, "-m", "launcher.cli", "run", *words]
    return preloaded.run(
        command, cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=400, check=False
    )


def notes_of(folder: Path) -> list[tuple[str, int, float, float]]:
    """What each job had, how many it saw running, and from when to when it certainly ran."""
    found = [file.read_text().split() for file in sorted(folder.glob("seen-*"))]
    return [(where, int(seen), float(begin), float(end)) for where, seen, begin, end in found]


def overlaps(jobs: list[tuple[str, int, float, float]]) -> bool:
    """Whether two of them ran at once."""
    spans = sorted((begin, end) for _, _, begin, end in jobs)
    return any(spans[i][1] > spans[i + 1][0] for i in range(len(spans) - 1))


@pytest.mark.slow
def test_four_small_jobs_run_two_at_a_time_on_two_slices(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    words = ["-m", "cluster=a100_mig_3g", f"script={JOB}", SEEDS, "run_dir=sweep", "output=json"]
    done = launch(tmp_path, *words, "--", str(notes), "60")

    assert done.returncode == 1, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)["runs"]
    assert [row["state"] for row in rows] == ["done", "failed (1)", *["done"] * 2]
    jobs = notes_of(notes)
    slices = {part.uuid for part in read_list(TWO_SLICES)[0].slices}
    assert {where for where, *_ in jobs} == slices == {row["on"] for row in rows}
    assert {seen for _, seen, *_ in jobs} == {2}  # never alone, never three
    for part in slices:
        assert not overlaps([job for job in jobs if job[0] == part])
    table = (tmp_path / "sweep" / "results.txt").read_text().splitlines()
    assert len(table) == 5 and all(f"train.seed={i}" in table[i] for i in range(1, 5))
    assert "failed with code 1" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_jobs_on_cpu_ranks_have_cores_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    sweep = ["train.seed=1,2,3", "run_dir=sweep", "cluster=cpu", "cluster.node.num_gpus=1", "layout.tp=1"]
    done = launch(tmp_path, "-m", f"script={JOB}", *sweep, "layout.pp=1", "layout.dp=1", "--", str(notes), "1")

    assert done.returncode == 1, done.stderr
    jobs = notes_of(notes)
    assert len(jobs) == 3 and all(where.isdigit() for where, *_ in jobs)
    for core in {where for where, *_ in jobs}:
        assert not overlaps([job for job in jobs if job[0] == core])
    assert len(done.stdout.splitlines()) == 4

    folder = tmp_path / "sweep"
    capsys.readouterr()
    assert main(["status", str(folder)]) == 1
    header, *rows = capsys.readouterr().out.splitlines()[-4:]
    assert header.split()[:3] == ["run", "state", "layout"]
    assert [row.split()[1] for row in rows] == ["done", "failed", "done"]
    assert main(["status", str(folder), "output=json"]) == 1
    assert [row["overrides"] for row in json.loads(capsys.readouterr().out)["runs"]] == [
        f"train.seed={i}" for i in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    "words",
    ["report S", "report S S", "compare S S/0", "plan plan=S", "run plan=S dry_run=true", "show plan=S",
     "export S to=torchrun", "export plan=S to=torchrun", "report plan=S", "logs S", "sync S",
     "run again=S dry_run=true", "calibrate S cluster=cpu"],
)  # fmt: skip
def test_the_folder_of_a_sweep_is_no_run_and_its_runs_are_named(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = load(["cluster=cpu"])
    plan = make_plan(settings.job, settings.request, settings.run_options)
    folder = tmp_path / "s"
    folder.mkdir()
    write_sweep(folder, [SweepMember(("train.seed=1",), plan)])
    assert main([word.replace("S", str(folder)) for word in words.split()]) == 2
    said = capsys.readouterr().err
    assert f"{folder} is the folder of a sweep, not of one run: name a run in it, as {folder}/0" in said
    assert [file.name for file in folder.iterdir()] == ["sweep.json"]


def test_a_job_that_no_plan_fits_stops_the_sweep_before_any_starts(tmp_path: Path) -> None:
    done = launch(tmp_path, "-m", "cluster=cpu", "layout.tp=2,3", "run_dir=sweep")

    assert done.returncode in (2, 3) and "tp=3" in done.stderr
    assert not (tmp_path / "sweep").exists()


def test_what_a_job_needs_is_a_core_a_gpu_or_a_slice_for_each_rank() -> None:
    def need(*words: str) -> Need:
        settings = load(list(words))
        return need_of(make_plan(settings.job, settings.request, settings.run_options), cores=4)

    assert need("cluster=cpu", "cluster.node.num_gpus=2", "layout.tp=1", "layout.pp=1", "layout.dp=2") == Need(CORES, 2)
    assert need("cluster=cpu") == Need(CORES, 4)  # eight ranks share them
    assert need("cluster=a100_mig_3g", "model=gpt3_125m") == Need(SLICE, 1)
    whole = need("cluster=dgx_a100_80g", "model=gpt3_125m", "cluster.node.num_gpus=2")
    assert whole == Need(GPUS, 2)


def test_no_two_jobs_share_a_device_and_what_is_given_back_is_used_again() -> None:
    pool = Pool({SLICE: ["a", "b"], GPUS: ["g"]})
    one, other = pool.take(Need(SLICE, 1)), pool.take(Need(SLICE, 1))

    assert one and other and not {*one.devices} & {*other.devices}
    assert pool.take(Need(SLICE, 1)) is None
    assert (whole := pool.take(Need(GPUS, 1))) and whole.variables == {"CUDA_VISIBLE_DEVICES": "g"}
    pool.give_back(Need(SLICE, 1), one)
    assert pool.take(Need(SLICE, 1)) == one


@pytest.mark.parametrize(
    ("visible", "whole", "slices"),
    [(None, 1, 2), ("0,1", 1, 0), ("", 0, 0), ("MIG-fe9bc608-60f5-5479-8cc4-1827021d27a9", 0, 1)],
)
def test_devices_are_those_that_the_user_shows(visible: str | None, whole: int, slices: int) -> None:
    found = devices(read_list(MIXED), visible)
    assert (len(found[GPUS]), len(found.get(SLICE, ()))) == (whole, slices)


def test_a_job_that_wants_more_than_there_is_is_refused() -> None:
    with pytest.raises(InputError, match=r"run 1 of the sweep wants 3 GPUs, and this machine has 1 GPUs"):
        Pool({GPUS: ["g"]}).check([Need(GPUS, 1), Need(GPUS, 3)])
    with pytest.raises(InputError, match=r"cannot be shared out among jobs: there is no nvidia-smi"):
        pool_of([Need(GPUS, 1)], lambda argv: Output(None, f"there is no {argv[0]} on this machine"))
