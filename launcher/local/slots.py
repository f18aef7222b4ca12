"""What of this machine one job of a local sweep takes: cores, whole GPUs, or one MIG slice. No two jobs share any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher import env
from launcher.cluster.commands import Runner
from launcher.cluster.readers_smi import ListedGpu, read_list
from launcher.errors import InputError
from launcher.planner import Plan

CORES, GPUS, SLICES = "cores", "GPUs", "MIG slices"
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Need:
    """So many of one kind. `kind`: cores, GPUs, or MIG slices of a profile."""

    kind: str
    count: int

    def __str__(self) -> str:
        return f"{self.count} {self.kind}"


@dataclass(frozen=True)
class Share:
    """What a job is given: `cores` as numbers, or the names of devices for CUDA_VISIBLE_DEVICES."""

    cores: tuple[int, ...] = ()
    devices: tuple[str, ...] = ()

    @property
    def variables(self) -> dict[str, str]:
        return {VISIBLE: ",".join(self.devices)} if self.devices else {}

    def __str__(self) -> str:
        if self.devices:
            return ", ".join(self.devices)
        return f"core{'s' if len(self.cores) > 1 else ''} {', '.join(map(str, self.cores))}"


def need_of(plan: Plan, *, cores: int) -> Need:
    """What a job's ranks want: a core each, as far as there are that many, a GPU each, or a slice."""
    gpu, ranks = plan.job.cluster.node.gpu, plan.layout.world_size
    if gpu.kind == "cpu":
        return Need(CORES, min(ranks, cores))
    return Need(f"{SLICES} {gpu.mig_profile}", ranks) if gpu.mig_profile else Need(GPUS, ranks)


class Pool:
    """What is free of this machine, by kind."""

    def __init__(self, free: Mapping[str, Sequence[str]]) -> None:
        self._free = {kind: list(names) for kind, names in free.items()}
        self.sizes = {kind: len(names) for kind, names in free.items()}

    def check(self, needs: Sequence[Need]) -> None:
        """Raise InputError if a job wants more than there is."""
        for number, need in enumerate(needs):
            if need.count > self.sizes.get(need.kind, 0):
                there = ", ".join(f"{count} {kind}" for kind, count in self.sizes.items() if count) or "none"
                raise InputError(
                    f"run {number} of the sweep wants {need}, and this machine has {there}: plan it on fewer ranks, "
                    "name the cluster that describes this machine, or use `launcher submit -m`"
                )

    def take(self, need: Need) -> Share | None:
        """A share that no other job has; None while too little is free."""
        free = self._free[need.kind]
        if need.count > len(free):
            return None
        taken, self._free[need.kind] = free[: need.count], free[need.count :]
        return Share(cores=tuple(map(int, taken))) if need.kind == CORES else Share(devices=tuple(taken))

    def give_back(self, need: Need, share: Share) -> None:
        self._free[need.kind] += [*map(str, share.cores), *share.devices]


def pool_of(needs: Sequence[Need], run: Runner) -> Pool:
    """What this machine has of the kinds that jobs want; raises InputError if it cannot be found out."""
    free: dict[str, Sequence[str]] = {CORES: [str(core) for core in env.core_numbers()]}
    if any(need.kind != CORES for need in needs):
        listed = run(("nvidia-smi", "-L"))
        if listed.text is None:
            raise InputError(f"the GPUs of this machine cannot be shared out among jobs: {listed.problem}")
        free |= devices(read_list(listed.text), env.get(VISIBLE))
    return Pool(free)


def devices(gpus: Sequence[ListedGpu], visible: str | None) -> dict[str, list[str]]:
    """GPUs that are whole, and slices by profile; of these what CUDA_VISIBLE_DEVICES names, if it is set."""
    shown = [word.strip() for word in visible.split(",")] if visible is not None else None
    found: dict[str, list[str]] = {GPUS: []}
    for gpu in gpus:
        if not gpu.slices and (shown is None or str(gpu.index) in shown or gpu.uuid in shown):
            found[GPUS].append(gpu.uuid)
        for part in gpu.slices:
            if shown is None or part.uuid in shown:
                found.setdefault(f"{SLICES} {part.profile}", []).append(part.uuid)
    return found
