"""Checkpoints: continue exactly, on any layout; torn, tampered and failed ones never replace a good one."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import SHALLOW, TINY, make_plan, run_ranks
from training import ADAMW, Curve, import_deepspeed, make_engine, steps

from launcher.errors import InputError
from launcher.layout import Layout
from launcher.model import Model
from launcher.planner.options import TrainOptions
from launcher.run.checkpoints import MANIFEST, committed_steps, folder_name, mark_damaged, newest_good
from launcher.worker.checkpoint.saver import CheckpointManager

SAVED, TOTAL = 2, 4  # the last loss follows an update with the restored state of the optimizer
SOURCE = Layout(tp=2, pp=2, dp=2, zero_stage=1, micro_batch=2)
RESHAPES = {
    "tp2 pp2 dp2 interleaved zero3": Layout(
        tp=2, pp=2, dp=2, zero_stage=3, schedule="interleaved", virtual_stages=2, micro_batch=2
    ),
    "tp1 pp1 dp8": Layout(tp=1, pp=1, dp=8),
    "tp1 pp1 dp4": Layout(tp=1, pp=1, dp=4, micro_batch=2),
    "tp2 dp2 zero3": Layout(tp=2, pp=1, dp=2, zero_stage=3, sequence_parallel=True, micro_batch=4),
    "cp2 dp2 zero1": Layout(tp=1, pp=1, dp=2, cp=2, zero_stage=1, micro_batch=4),
    "pp4": Layout(tp=1, pp=4, dp=1, micro_batch=2),
    "tp4": Layout(tp=4, pp=1, dp=1, micro_batch=8),
    "one rank": Layout(tp=1, pp=1, dp=1, micro_batch=8),
}
SYNC = TrainOptions(**{**vars(ADAMW), "checkpoint_async": False})


def saves(
    folder: Path,
    layout: Layout,
    *,
    options: TrainOptions = ADAMW,
    at: tuple[int, ...] = (SAVED,),
    model: Model = SHALLOW,
    **training: Any,
) -> Callable[[int], Curve]:
    """A rank's body: train to TOTAL or the last save, saving on the way; `training` are fields of Training."""

    def body(rank: int) -> Curve:
        engine, axes = make_engine(layout, rank, options=options, model=model, optimizer="adamw", **training)
        manager = CheckpointManager(folder, plan=make_plan(layout, model=model), options=options)
        curve: Curve = []
        for step in range(max(TOTAL, *at)):
            curve += steps(engine, axes, range(step, step + 1), model=model, lr=options.lr)
            if step + 1 in at:
                manager.save(step + 1, engine.state(loading=False))
        manager.close()
        return curve

    return body


def continues(
    folder: Path, layout: Layout, *, options: TrainOptions = ADAMW, model: Model = SHALLOW, **training: Any
) -> Callable[[int], dict[str, Any]]:
    """A rank's body: restore into a model of another seed, and train on to TOTAL."""

    def body(rank: int) -> dict[str, Any]:
        other_seed = TrainOptions(**{**vars(options), "seed": 999})
        engine, axes = make_engine(layout, rank, options=other_seed, model=model, optimizer="adamw", **training)
        manager = CheckpointManager(folder, plan=make_plan(layout, model=model), options=options)
        step = manager.restore(engine.state(loading=True))
        engine.loaded()
        return {"step": step, "curve": steps(engine, axes, range(step, TOTAL), model=model, lr=options.lr)}

    return body


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Curve]:
    """A run with tp2 × pp2 × dp2 that saved in the background and continued: the folder and its losses."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return folder, run_ranks(8, saves(folder, SOURCE, model=TINY))[0]


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [8, 4, 1])
def test_a_run_continues_on_another_layout_as_if_nothing_had_happened(
    world_size: int, saved: tuple[Path, Curve]
) -> None:
    folder, curve = saved
    layouts = {name: layout for name, layout in RESHAPES.items() if layout.world_size == world_size}

    def body(rank: int) -> dict[str, Any]:
        return {name: continues(folder, layout, model=TINY)(rank) for name, layout in layouts.items()}

    for name, found in run_ranks(world_size, body)[0].items():
        assert found["step"] == SAVED
        assert [loss for loss, _ in found["curve"]] == pytest.approx([loss for loss, _ in curve[SAVED:]], abs=1e-5), (
            name
        )


@pytest.mark.slow
def test_the_same_layout_continues_bit_for_bit(saved: tuple[Path, Curve]) -> None:
    folder, curve = saved
    assert run_ranks(8, continues(folder, SOURCE, model=TINY))[0]["curve"] == curve[SAVED:]


BY_DEEPSPEED: dict[str, Any] = {"engine": "deepspeed"}
DEEPSPEED: dict[str, tuple[Layout, dict[str, Any]]] = {
    "zero0 tp2": (Layout(tp=2, pp=1, dp=1, zero_stage=0, micro_batch=4), BY_DEEPSPEED),
    "zero1 offloaded": (
        Layout(tp=1, pp=1, dp=2, zero_stage=1, micro_batch=2, offload_optimizer=True),
        BY_DEEPSPEED,
    ),
    "zero2": (Layout(tp=1, pp=1, dp=2, zero_stage=2, micro_batch=2), BY_DEEPSPEED),
    "zero3": (Layout(tp=1, pp=1, dp=2, zero_stage=3, micro_batch=2), BY_DEEPSPEED),
    "pp2 zero1": (Layout(tp=1, pp=2, dp=1, zero_stage=1, micro_batch=2), BY_DEEPSPEED),
    "torch": (Layout(tp=1, pp=1, dp=2, zero_stage=2, micro_batch=2), {}),
}


@pytest.mark.slow
def test_deepspeed_saves_what_it_and_the_torch_engine_continue_from(tmp_path: Path) -> None:
    """Each case resumes bit for bit from its own save, and also from that of the previous case."""
    import_deepspeed()
    names = list(DEEPSPEED)

    def body(rank: int) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for before, name in zip([names[-1], *names], names, strict=False):
            layout, training = DEEPSPEED[name]
            curve = saves(tmp_path / name, layout, **training)(rank)
            found[name] = [curve] + [
                continues(tmp_path / folder, layout, **training)(rank)
                for folder in (name, before)
                if (tmp_path / folder).is_dir()
            ]
        return found

    for name, (curve, *continued) in run_ranks(2, body)[0].items():
        assert continued[0] == {"step": SAVED, "curve": curve[SAVED:]}, name
        right = [loss for loss, _ in curve[SAVED:]]
        for other in continued[1:]:
            assert [loss for loss, _ in other["curve"]] == pytest.approx(right, abs=1e-5), name


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder with good checkpoints after steps 2 and 4 of a one-rank run."""
    run_ranks(1, saves(tmp_path, Layout(tp=1, pp=1, dp=1, micro_batch=8), options=SYNC, at=(2, 4)))
    assert committed_steps(tmp_path) == [4, 2]
    return tmp_path


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "bit flipped": ("rank-00000.bin", flip_a_bit),
    "file cut": ("rank-00000.bin", lambda path: path.write_bytes(path.read_bytes()[:-100])),
    "file gone": ("rank-00000.bin", Path.unlink),
    "manifest cut": (MANIFEST, lambda path: path.write_text(path.read_text()[:200])),
    "manifest changed": (MANIFEST, lambda path: path.write_text(path.read_text().replace('"step": 4', '"step": 5'))),
    "manifest gone": (MANIFEST, Path.unlink),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(
    kind: str, two: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name, damage = DAMAGE[kind]
    file = two / folder_name(4) / name
    damage(file)
    found = run_ranks(1, continues(two, Layout(tp=1, pp=1, dp=1, micro_batch=8), options=SYNC))[0]
    assert found["step"] == 2
    warning = capfd.readouterr().err
    assert str(file) in warning and folder_name(4) in warning and "not used" in warning
    known = newest_good(two)  # what `launcher status` and the rule of requeues see without reading tensors
    assert known.step == 2 and str(file) in known.damaged[4]


def test_a_record_of_damage_ends_with_a_repair_and_when_ranks_find_nothing(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, plan=make_plan(Layout(tp=1, pp=1, dp=1), model=SHALLOW), options=SYNC)
    for step in (2, 4):
        manager.save(step, {"weights": torch.zeros(8)})
    file = tmp_path / folder_name(4) / "rank-00000.bin"
    right = file.read_bytes()
    flip_a_bit(file)
    assert newest_good(tmp_path).step == 4  # nobody has read it yet
    assert manager.newest_good() == newest_good(tmp_path).step == 2
    time.sleep(0.1)  # more than the steps of a file's times
    file.write_bytes(right)
    assert newest_good(tmp_path).step == 4
    mark_damaged(file.parent, ["of a disk that has come back"])
    assert newest_good(tmp_path).step == 2
    assert manager.newest_good() == newest_good(tmp_path).step == 4
    manager.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 8 MiB; skips where this user may not mount one."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", mounted], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield mounted
    subprocess.run(["umount", "--lazy", mounted], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint_async", [True, False])
def test_a_full_disk_is_reported_and_harms_neither_the_run_nor_older_checkpoints(
    checkpoint_async: bool, small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    layout, folder, filler = Layout(tp=1, pp=1, dp=2, zero_stage=1), small_disk / "checkpoints", small_disk / "filler"
    options = TrainOptions(**{**vars(ADAMW), "checkpoint_async": checkpoint_async})

    def body(rank: int) -> dict[str, Any]:
        engine, axes = make_engine(layout, rank, options=options, model=SHALLOW, optimizer="adamw")
        manager = CheckpointManager(folder, plan=make_plan(layout, model=SHALLOW), options=options)
        found = {}
        for step in (1, 2, 3):
            found["curve"] = steps(engine, axes, range(step - 1, step), model=SHALLOW, lr=1e-2)
            if rank == 0 and step == 2:
                filler.write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize - 65536))
            dist.barrier()
            manager.save(step, engine.state(loading=False))
            manager.wait()
            found[f"after {step}"] = manager.newest_good()
            if rank == 0 and step == 2:
                filler.unlink()
            dist.barrier()
        return found

    found = run_ranks(2, body)[0]
    assert [found[f"after {step}"] for step in (1, 2, 3)] == [1, 1, 3] and len(found["curve"]) == 1
    warning = capfd.readouterr().err
    assert "after step 2 could not be written" in warning and "No space left on device" in warning
    assert f"the last good one is {folder_name(1)}" in warning
    assert sorted(path.name for path in folder.iterdir()) == [folder_name(1), folder_name(3)]


@pytest.mark.slow
def test_the_last_ones_and_every_mth_are_kept(tmp_path: Path) -> None:
    options = TrainOptions(**{**vars(SYNC), "keep_last": 2, "keep_every": 3})
    run_ranks(1, saves(tmp_path, Layout(tp=1, pp=1, dp=1, micro_batch=8), options=options, at=(1, 2, 3, 4, 5, 6)))
    assert committed_steps(tmp_path) == [6, 5, 3]


@pytest.mark.slow
def test_a_damaged_checkpoint_takes_the_place_of_no_good_one(tmp_path: Path) -> None:
    """The run goes on before it, may save at other steps, and must not be left with one that is good."""
    options = TrainOptions(**{**vars(SYNC), "keep_last": 2})
    weights = {"weights": torch.zeros(8)}

    def manager() -> CheckpointManager:
        return CheckpointManager(tmp_path, plan=make_plan(Layout(tp=1, pp=1, dp=1), model=SHALLOW), options=options)

    first = manager()
    for step in (3, 6):
        first.save(step, weights)
    first.close()
    flip_a_bit(tmp_path / folder_name(6) / "rank-00000.bin")
    second = manager()
    assert second.restore(weights) == 3
    second.save(4, weights)  # asked to stop
    second.close()
    assert committed_steps(tmp_path) == [6, 4, 3]
    flip_a_bit(tmp_path / folder_name(4) / "rank-00000.bin")
    third = manager()
    assert third.restore(weights) == 3
    third.save(6, weights)
    third.save(9, weights)
    third.close()
    assert committed_steps(tmp_path) == [9, 6]
    assert manager().restore(weights) == 9


@pytest.mark.slow
def test_a_process_that_saved_may_save_again_in_a_group_of_another_size(tmp_path: Path) -> None:
    """torch keeps the plans of a save for the whole process, and forked ranks get them too."""
    alone = CheckpointManager(tmp_path / "alone", plan=make_plan(Layout(tp=1, pp=1, dp=1), model=SHALLOW), options=SYNC)
    alone.save(3, {"weights": torch.zeros(8)})
    alone.close()
    layout = Layout(tp=1, pp=1, dp=2)
    run_ranks(2, saves(tmp_path / "two", layout, options=SYNC, at=(2, 4)))
    assert run_ranks(2, continues(tmp_path / "two", layout))[0]["step"] == 4


def test_a_checkpoint_of_another_model_is_refused_with_both_values(two: Path) -> None:
    def body(rank: int) -> str:
        other = make_plan(Layout(tp=1, pp=1, dp=1), model=SHALLOW, global_batch=16)
        manager = CheckpointManager(two, plan=other, options=SYNC)
        try:
            manager.restore({"x": torch.zeros(1)})
        except InputError as error:
            return str(error)
        return "was restored"

    message = run_ranks(1, body)[0]
    assert "global_batch=8" in message and "16" in message


@pytest.mark.slow
def test_a_checkpoint_holds_no_pickle(two: Path) -> None:
    files = sorted(path.name for path in (two / folder_name(4)).iterdir())
    assert files == [MANIFEST, "rank-00000.bin"]
    body = json.loads((two / folder_name(4) / MANIFEST).read_text())["body"]
    assert (
        sum(c["length"] for t in body["tensors"].values() for c in t["chunks"])
        == body["files"]["rank-00000.bin"]["bytes"]
    )


def test_leftovers_of_a_killed_save_are_never_taken_for_checkpoints(tmp_path: Path) -> None:
    for name in (".saving-step-00000009", ".deleting-step-00000008", "step-x", "step-00000007"):
        (tmp_path / name).mkdir()
    assert committed_steps(tmp_path) == [7]
