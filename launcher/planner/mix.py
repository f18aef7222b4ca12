"""How to cut GPUs by MIG for a mix of small jobs: the slice that each needs, and which of them share a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from launcher.cluster.mig_profiles import Profile, placed, profiles_of
from launcher.errors import InputError, NoLayoutFits
from launcher.layout import LayoutRequest
from launcher.layout.job import Job
from launcher.planner.compare import resized
from launcher.planner.result import Candidate
from launcher.planner.search import search
from launcher.planner.slices import SURE, by_need, one_slice


@dataclass(frozen=True)
class SmallJob:
    """A job of the mix and its best plan on the smallest slice that it fits; `profile`: None for a whole GPU."""

    name: str
    profile: Profile | None
    best: Candidate

    @property
    def tokens_per_s(self) -> float:
        return self.best.estimate.tokens_per_s_per_gpu


@dataclass(frozen=True)
class CutGpu:
    """One GPU and the jobs on it. `starts`: memory slices at which their instances begin; () where it is not cut."""

    jobs: tuple[SmallJob, ...]
    starts: tuple[int, ...] = ()

    def command(self, index: int) -> str:
        """The command that makes its instances, the first of the largest start."""
        ids = ",".join(str(job.profile.profile_id) for job in self.jobs if job.profile)
        return f"nvidia-smi mig -i {index} -cgi {ids} -C" if ids else ""


def small_job(name: str, job: Job, request: LayoutRequest) -> SmallJob:
    """The job on the smallest slice; raises InputError without MIG, NoLayoutFits where a GPU is too small."""
    gpu = job.cluster.node.gpu
    profiles = profiles_of(gpu.name)
    if not profiles or job.cluster.node.is_mig:
        raise InputError(
            f"mix= cuts whole GPUs by MIG, and {gpu.name} of {job.cluster.name} "
            f"{'is a slice already' if job.cluster.node.is_mig else 'has no MIG profiles here'}: "
            "choose a cluster of A100, A30 or H100"
        )
    for profile in by_need(profiles):
        if profile.size == profile.slices:
            break  # all of it: not cut at all
        best = _best(replace(job, cluster=one_slice(job.cluster, profile)), request)
        if best and best.estimate.fit_probability >= SURE:
            return SmallJob(name, profile, best)
    whole = search(replace(job, cluster=resized(job.cluster, 1)), request, top=1).best
    return SmallJob(name, None, whole)


def _best(job: Job, request: LayoutRequest) -> Candidate | None:
    try:
        return search(job, request, top=1).best
    except NoLayoutFits:
        return None


def packed(jobs: Sequence[SmallJob]) -> list[CutGpu]:
    """The GPUs that hold all jobs: the largest first, each on the first GPU with room for it."""
    cut: list[list[SmallJob]] = []
    whole = [CutGpu((job,)) for job in jobs if job.profile is None]
    for job in sorted((job for job in jobs if job.profile), key=_weight, reverse=True):
        room = next((gpu for gpu in cut if _starts([*gpu, job]) is not None), None)
        if room is None:
            cut.append([job])
        else:
            room.append(job)
    return whole + [CutGpu(tuple(gpu), _starts(gpu) or ()) for gpu in cut]


def _weight(job: SmallJob) -> tuple[int, int]:
    profile = job.profile
    return (profile.size, profile.compute) if profile else (0, 0)


def _starts(jobs: Sequence[SmallJob]) -> tuple[int, ...] | None:
    return placed([job.profile for job in jobs if job.profile])


def mix_data(gpus: Sequence[CutGpu], available: int) -> Mapping[str, Any]:
    """The packing as one document."""
    return {
        "gpus": [
            {
                "gpu": index,
                "command": gpu.command(index),
                "jobs": [
                    {
                        "model": job.name, "profile": job.profile.name if job.profile else None,
                        "start": gpu.starts[place] if gpu.starts else None, "layout": job.best.layout.brief(),
                        "tokens_per_s": job.tokens_per_s,
                    }
                    for place, job in enumerate(gpu.jobs)
                ],
            }
            for index, gpu in enumerate(gpus)
        ],
        "available": available,
    }  # fmt: skip
