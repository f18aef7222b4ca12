"""Checkpoints of a run: saved in the background, committed by rename, checked before use."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from launcher.console import show
from launcher.errors import InputError
from launcher.planner.options import TrainOptions
from launcher.planner.record import Plan
from launcher.run.checkpoints import (
    PREFIX,
    check_identity,
    committed_steps,
    doomed_name,
    folder_name,
    leftovers,
    mark_damaged,
    mark_good,
    read_files,
    read_manifest,
    temporary_name,
)
from launcher.worker.checkpoint.checksum import file_problem
from launcher.worker.checkpoint.staging import Staging
from launcher.worker.checkpoint.storage import ManifestReader, ManifestWriter

State = Mapping[str, Any]


class _SavePlanner(DefaultSavePlanner):
    """A planner that remembers the plans of one manager alone.

    torch keeps them for the whole process under the name of the planner's class: a second manager, or a child forked
    after a save, would merge its plans into those of other ranks. What a manager is done with is forgotten.
    """

    def __init__(self, key: str) -> None:
        super().__init__(enable_plan_caching=True)
        self._cached_plans_key = key

    @staticmethod
    def forget(key: str) -> None:
        for kept in vars(SavePlanner).values():
            if isinstance(kept, dict):
                kept.pop(key, None)


class CheckpointManager:
    """Saves and restores nested dictionaries of tensors (DTensors among them); all methods are collective.

    With `options.checkpoint_async` a save copies the state and returns; it is written in the background, over a
    separate process group. A failed save is reported and the run continues: older checkpoints are not touched.
    """

    def __init__(self, folder: Path, *, plan: Plan, options: TrainOptions) -> None:
        self.folder = folder
        self._plan, self._options = plan, options
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        rank = dist.get_rank() if dist.is_initialized() else 0
        self._main = rank == 0
        self._rng_name = f"rng.{rank:05d}"
        self._staging = Staging()
        self._plans_key = uuid4().hex
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: tuple[int, Future[Any]] | None = None
        self._damaged: set[int] = set()  # steps of checkpoints that cannot be used
        if self._main:
            for leftover in leftovers(folder):
                shutil.rmtree(leftover, ignore_errors=True)

    def due(self, step: int) -> bool:
        """Return whether a checkpoint is due after `step` steps."""
        return self._options.checkpoint_every > 0 and step % self._options.checkpoint_every == 0

    def save(self, step: int, state: State, *, extra: Mapping[str, Any] | None = None) -> None:
        """Save `state` as of `step` finished steps; `extra` is plain data for the manifest."""
        self.wait()
        temporary = self.folder / temporary_name(step)
        body = {
            "step": step,
            "job": self._plan.identity(),
            "layout": asdict(self._plan.layout),
            "extra": dict(extra or {}),
        }
        writer = ManifestWriter(temporary, extra=body, commit=lambda path: self._commit(path, step))
        arguments: dict[str, Any] = {
            "storage_writer": writer,
            "planner": _SavePlanner(self._plans_key),
            "process_group": self._group,
        }
        tensors = {**flatten(state), self._rng_name: torch.get_rng_state()}
        if self._options.checkpoint_async:
            self._pending = (step, self._writer.submit(save, {PREFIX: self._staging.copy(tensors)}, **arguments))
            return
        try:
            save({PREFIX: tensors}, **arguments)
        except CheckpointException as error:
            self._report_failure(step, error)

    def wait(self) -> None:
        """Wait for a running save, if any."""
        if self._pending is None:
            return
        step, future = self._pending
        self._pending = None
        try:
            future.result()
        except CheckpointException as error:
            self._report_failure(step, error)

    def restore(self, state: State) -> int:
        """Load the newest good checkpoint into the tensors of `state`; returns its step, 0 where there is none.

        Raises InputError where the checkpoint belongs to another model or data order.
        """
        step = self.newest_good()
        if step is None:
            return 0
        folder = self.folder / folder_name(step)
        manifest = read_manifest(folder)
        check_identity(manifest["job"], self._plan.identity(), folder=folder)
        tensors, rng = flatten(state), torch.get_rng_state()
        if f"{PREFIX}.{self._rng_name}" in manifest["tensors"]:  # not where the run had fewer ranks
            tensors[self._rng_name] = rng
        load(
            {PREFIX: tensors},
            storage_reader=ManifestReader(folder),
            planner=DefaultLoadPlanner(),
            process_group=self._group,
        )
        torch.set_rng_state(rng)
        return step

    def newest_good(self) -> int | None:
        """Return the step of the newest complete checkpoint; warn about every newer one that is damaged."""
        steps: list[Any] = [committed_steps(self.folder) if self._main else None]
        if self._group is not None:
            dist.broadcast_object_list(steps, src=0, group=self._group)
        for step in steps[0]:
            folder = self.folder / folder_name(step)
            problems = self._problems(folder)
            if not problems:
                if self._main:
                    mark_good(folder)
                return int(step)
            self._damaged.add(step)
            if self._main:
                mark_damaged(folder, problems)
            self._say(f"warning: checkpoint {folder_name(step)} is not used: {'; '.join(problems)}")
        return None

    def close(self) -> None:
        """Wait for a running save, and forget its plans."""
        self.wait()
        self._writer.shutdown()
        _SavePlanner.forget(self._plans_key)

    def _problems(self, folder: Path) -> list[str]:
        """Return the problems of a checkpoint; the ranks share the reading of its files."""
        rank, size = (dist.get_rank(), dist.get_world_size()) if self._group is not None else (0, 1)
        try:
            files = sorted(read_files(folder).items())
        except InputError as error:
            mine = [str(error)]
        else:
            found = (file_problem(folder, name, expected) for name, expected in files[rank::size])
            mine = [problem for problem in found if problem]
        if self._group is None:
            return mine
        everyone: list[list[str] | None] = [None] * size
        dist.all_gather_object(everyone, mine, group=self._group)
        return sorted({problem for part in everyone for problem in part or []})

    def _commit(self, temporary: Path, step: int) -> None:
        """Commit the checkpoint atomically, on the coordinator."""
        target = self.folder / folder_name(step)
        if target.exists():  # a torn one of the same step, which was not used
            self._remove(step)
        temporary.rename(target)
        self._damaged.discard(step)
        self._remove_old()

    def _remove_old(self) -> None:
        """Keep the newest good ones; of the damaged ones those that are newer, which may be of use to somebody."""
        steps, every = committed_steps(self.folder), self._options.keep_every
        kept = [step for step in steps if step not in self._damaged][: self._options.keep_last]
        for old in steps:
            if old not in kept and old < kept[0] and not (every and old % every == 0):
                self._remove(old)

    def _remove(self, step: int) -> None:
        """Delete a checkpoint: renamed first, so that a half-deleted one is never taken for one, and freed behind the
        training.
        """
        doomed = self.folder / doomed_name(step)
        shutil.rmtree(doomed, ignore_errors=True)  # of a torn one of the same step, if it is still there
        (self.folder / folder_name(step)).rename(doomed)
        self._writer.submit(shutil.rmtree, doomed, ignore_errors=True)

    def _report_failure(self, step: int, error: CheckpointException) -> None:
        """Warn about a checkpoint that could not be written; the run continues."""
        causes = sorted({f"rank {rank}: {failure[0]}" for rank, failure in error.failures.items()})
        left = [step for step in committed_steps(self.folder) if step not in self._damaged]
        last = f"the last good one is {folder_name(left[0])}" if left else "there is none before it"
        self._say(f"warning: the checkpoint after step {step} could not be written ({'; '.join(causes)}); {last}")
        if self._main:
            shutil.rmtree(self.folder / temporary_name(step), ignore_errors=True)

    def _say(self, message: str) -> None:
        if self._main:
            show(message, to=sys.stderr)


def flatten(state: State, prefix: str = "") -> dict[str, Tensor]:
    """Nested dictionaries to one, keys joined by dots."""
    flat: dict[str, Tensor] = {}
    for key, value in state.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
