"""Which MIG slice a job on one GPU needs, and how many such jobs a GPU then runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from launcher.cluster import Cluster
from launcher.cluster.mig_profiles import Profile, profiles_of
from launcher.cost import Estimate
from launcher.cost.model import CostModel
from launcher.layout import Layout
from launcher.layout.job import Job
from launcher.planner.result import Candidate

SURE = 0.5  # probability of fitting below which a slice is not named


def smallest_slice(job: Job, best: Candidate) -> Iterator[str]:
    """Name the smallest profile that the job fits, at the micro-batch that is fastest there. Of those with the same
    memory, that which makes most of a whole GPU.
    """
    profiles = profiles_of(job.cluster.node.gpu.name)
    if best.layout.world_size > 1 or job.cluster.node.is_mig:
        return
    for profile in by_need(profiles):
        found = on_slice(job, best.layout, profile)
        if found is None:
            continue
        layout, estimate = found
        speed = estimate.tokens_per_s_per_gpu
        share = speed / best.estimate.tokens_per_s_per_gpu
        if profile.instances > 1:
            yield (
                f"a MIG slice {profile.name} is enough, as {layout.brief()}: {speed:,.0f} tokens/s, {share:.0%} of the "
                f"whole GPU's; a GPU cut into {profile.instances} of them runs as many such jobs at once, "
                f"{profile.instances * share:.2f} times the tokens"
            )
        return


def by_need(profiles: Sequence[Profile]) -> list[Profile]:
    """From little memory to much; of the same, from many SMs of the whole GPU to few."""
    return sorted(profiles, key=lambda each: (each.size, -each.instances * each.num_sms))


def one_slice(cluster: Cluster, profile: Profile) -> Cluster:
    """A cluster of one slice."""
    node = cluster.node
    gpu = node.gpu.cut(profile)
    one = replace(
        node, gpu=gpu, num_gpus=1, domains=((0,),), nvlink="none", slices_per_gpu=1, nic_of_gpu=None, numa_of_gpu=None
    )
    return replace(cluster, node=one, num_nodes=1, nvlink_nodes=1, leaf_sizes=None)


def on_slice(job: Job, layout: Layout, profile: Profile) -> tuple[Layout, Estimate] | None:
    """The layout with the fastest micro-batch that fits a slice; None where none does."""
    model = CostModel(replace(job, cluster=one_slice(job.cluster, profile)))
    sizes = (2**power for power in range(12))
    tried = [replace(layout, micro_batch=size) for size in sizes if not job.training.global_batch % size]
    fits = [(each, found) for each in tried if (found := model.estimate(each)).fit_probability >= SURE]
    return min(fits, key=lambda each: each[1].step_time_s, default=None)
