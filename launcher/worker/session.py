"""The session of a rank: the plan, its place in it, process groups, device mesh, tracker, checkpoints.

from launcher.worker import session
run = session.start()
mesh, tracker, checkpoints = run.mesh, run.tracker, run.checkpoints
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from launcher import env
from launcher.console import show
from launcher.env import RankEnv
from launcher.errors import InputError, LauncherError
from launcher.fast_exit import wait_for_native_threads
from launcher.planner.options import TrainOptions
from launcher.planner.record import Plan, read_plan
from launcher.run.folder import RunFolder
from launcher.worker.checkpoint.saver import CheckpointManager, State
from launcher.worker.metrics.span_recorder import SpanRecorder
from launcher.worker.metrics.tracking import Tracker, make_tracker
from launcher.worker.parallel.mesh import Axes, build_mesh
from launcher.worker.placement import Place, check_gathered, check_place
from launcher.worker.stop import Pulse

R = TypeVar("R")
GROUP_TIMEOUT = timedelta(minutes=30)


@dataclass
class Session:
    """One rank of a planned job. Use it as a context manager, or call `close` at the end."""

    plan: Plan
    rank_env: RankEnv
    run_dir: Path
    device: torch.device
    axes: Axes
    pulse: Pulse
    started_at: float

    @property
    def rank(self) -> int:
        return self.rank_env.rank

    @property
    def world_size(self) -> int:
        return self.rank_env.world_size

    @property
    def folder(self) -> RunFolder:
        """The names inside the run folder."""
        return RunFolder(self.run_dir)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which prints messages."""
        return self.rank == 0

    @property
    def mesh(self) -> DeviceMesh:
        """The device mesh, dimensions named by the plan's axes."""
        return self.axes.mesh

    @property
    def options(self) -> TrainOptions:
        return self.plan.options.train

    def recipe_options(self, kind: type[R]) -> R:
        """Return the options of this recipe; raises InputError if the plan is for another one."""
        options = self.plan.options.recipe
        if not isinstance(options, kind):
            raise InputError(f"the plan is for the recipe {options.name}, but another one was started with it")
        return options

    @cached_property
    def tracker(self) -> Tracker:
        """Metrics to the terminal, the run folder and wandb; does nothing on ranks other than 0."""
        return make_tracker(self.plan, run_dir=self.run_dir, main=self.is_main)

    @cached_property
    def checkpoints(self) -> CheckpointManager:
        """Checkpoints in the run folder; the first use is collective."""
        return CheckpointManager(self.folder.checkpoints, plan=self.plan, options=self.options)

    @cached_property
    def spans(self) -> SpanRecorder:
        """Records what this rank does in the steps of `train.spans`."""
        return SpanRecorder.of(
            self.options, grid=self.plan.grid, rank=self.rank, device=self.device, run_dir=self.run_dir
        )

    def resume(self, state: State) -> int:
        """Load the newest good checkpoint of the run folder into `state`; returns its step, 0 at a fresh start."""
        step = self.checkpoints.restore(state) if self.options.resume else 0
        if step:
            self.say(f"going on after step {step}, from {self.checkpoints.folder}")
        return step

    def say(self, message: str) -> None:
        """Print a line on stderr, on rank 0 only; on a terminal no word is cut."""
        if self.is_main:
            show(message, to=sys.stderr)

    def end_step(self, step: int, *, step_s: float) -> bool:
        """Report that `step` steps are done; return True, on all ranks alike, if the job should stop now."""
        return self.pulse.step_done(step, step_s=step_s)

    def close(self) -> None:
        """Finish pending writes and leave the process group."""
        if "checkpoints" in self.__dict__:
            self.checkpoints.close()
        if "spans" in self.__dict__:
            self.spans.close()
        if "tracker" in self.__dict__:
            self.tracker.close()
        self.pulse.close()
        if dist.is_initialized():
            dist.destroy_process_group()
            wait_for_native_threads()  # whoever frees the model joins them with the GIL (agent.group_ends)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()


def start() -> Session:
    """Join the job that this process is a rank of; every rank calls this once.

    Reads the plan that LAUNCHER_PLAN names, checks that this process is where the plan puts it, and builds process
    groups and mesh. Raises InputError with both names if they differ.
    """
    started_at = time.monotonic()
    rank_env = env.rank_env()
    if rank_env.plan is None or rank_env.run_dir is None:
        raise InputError(f"{env.PLAN} and {env.RUN_DIR} are not set: start this script with `launcher run script=…`")
    plan = read_plan(rank_env.plan)
    place = check_place(plan, rank_env, host=socket.gethostname())
    device = join(plan, place)
    if rank_env.world_size > 1:
        check_gathered(plan, place)
    axes = build_mesh(plan.grid, rank=rank_env.rank, device_type=device.type, shard_within=plan.layout.shard_group)
    session = Session(plan, rank_env, rank_env.run_dir, device, axes, Pulse(), started_at)
    backend = (
        "nccl (and gloo for CPU tensors)"
        if device.type == "cuda"
        else "gloo: no CUDA in this plan, collectives run on the CPU"
    )
    session.say(f"{plan.layout.brief()}: {rank_env.world_size} ranks, mesh {_describe(axes)}, process group {backend}")
    return session


def join(plan: Plan, place: Place) -> torch.device:
    """Initialise the default process group on this rank's device."""
    device = torch.device("cuda", place.device_index) if place.device_index is not None else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=GROUP_TIMEOUT, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=GROUP_TIMEOUT)
    return device


def main(body: Callable[[], None]) -> None:
    """Run a recipe's body; report user errors in one message without a traceback, and exit with their code."""
    try:
        body()
    except LauncherError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from error


def _describe(axes: Axes) -> str:
    names = axes.mesh.mesh_dim_names or ()
    return " × ".join(f"{name}={size}" for name, size in zip(names, axes.mesh.shape, strict=True))
