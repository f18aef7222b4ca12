"""A rank's connection to its agent: it sends heartbeats and step times and receives stop requests."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from launcher.run.heartbeat import Heartbeats
from launcher.worker.metrics.own_time import BusyClock


class Pulse:
    """Call `step_done` at the end of every step, on every rank of the job.

    A stop request (Ctrl-C, Slurm's signal before a time limit) reaches the agents of the nodes at different moments,
    so the ranks vote on it: an all-reduce that is started at the end of one step and read at the end of the next,
    which costs no waiting and gives every rank the same answer at the same step. Without a launcher (plain torchrun)
    nothing can request a stop; the vote is then always no.
    """

    def __init__(self, *, group: dist.ProcessGroup | None = None) -> None:
        """`group` holds all ranks and takes CPU tensors (default: made where needed)."""
        self._heartbeats = Heartbeats.of_this_rank()
        self._group = group or _cpu_group()
        self._ballot = torch.zeros(1, dtype=torch.int32)
        self._vote: Any = None
        self._busy: BusyClock | None = None
        if self._heartbeats:
            heartbeats, local_rank = self._heartbeats
            on_cpu = not dist.is_initialized() or dist.get_backend() == "gloo"
            self._busy = BusyClock(num_ranks=heartbeats.num_ranks) if on_cpu else None
            heartbeats.mark_groups(local_rank)
            heartbeats.mark_checks_stop(local_rank)
            heartbeats.beat(local_rank)

    def beat(self) -> None:
        """Send a heartbeat during work that is not a step: loading, compiling, writing a checkpoint."""
        if self._heartbeats:
            heartbeats, local_rank = self._heartbeats
            heartbeats.beat(local_rank)

    def step_done(self, step: int, *, step_s: float, own_s: float | None = None) -> bool:
        """`step` steps are finished, the last took `step_s`; True, on all ranks at once, when the job should stop.

        `own_s` is what of it this rank was busy itself, by which slow ranks are found; by default it is measured on
        a CPU (`BusyClock`), and taken to be all of `step_s` on a GPU.
        """
        asked = False
        if self._heartbeats:
            heartbeats, local_rank = self._heartbeats
            busy_s = self._busy.lap() if self._busy else None
            heartbeats.beat(local_rank, step=step, step_s=step_s, own_s=busy_s if own_s is None else own_s)
            asked = heartbeats.stop_requested
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return asked
        agreed = self._result()
        self._ballot = torch.tensor([int(asked)], dtype=torch.int32)
        self._vote = dist.all_reduce(self._ballot, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return agreed

    def close(self) -> None:
        """Complete the last vote, so that no collective is pending when the process groups are destroyed."""
        self._result()

    def _result(self) -> bool:
        if self._vote is None:
            return False
        self._vote.wait()
        self._vote = None
        return bool(self._ballot.item())


def _cpu_group() -> dist.ProcessGroup | None:
    """Return the world over gloo: the default group if it is gloo already (None), else a new group."""
    if not dist.is_initialized() or dist.get_backend() == "gloo":
        return None
    group: dist.ProcessGroup = dist.new_group(backend="gloo")
    return group
