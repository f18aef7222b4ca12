"""Checks that this process is the rank on the node and device that the plan names."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from launcher.env import RankEnv
from launcher.errors import InputError
from launcher.planner.record import Plan


@dataclass(frozen=True)
class Place:
    """The location of a rank. `device_index` is None on a CPU rank; `device` is a UUID, or `cpu:<local rank>`."""

    rank: int
    host: str
    device_index: int | None
    device: str


def check_place(plan: Plan, rank_env: RankEnv, *, host: str) -> Place:
    """Compare this process with the plan; raises InputError naming both sides of every difference."""
    if rank_env.world_size != plan.layout.world_size:
        raise InputError(
            f"the plan is for {plan.layout.world_size} ranks ({plan.layout.brief()}), but {rank_env.world_size} were "
            "started: start as many ranks as the plan has, or plan again"
        )
    slot = plan.placement.slot(rank_env.rank)
    problems = []
    if (rank_env.node, rank_env.local_rank) != (slot.node, slot.local_rank):
        problems.append(
            f"rank {rank_env.rank} is local rank {slot.local_rank} of node {slot.node} in the plan, but was started as "
            f"local rank {rank_env.local_rank} of node {rank_env.node}: start the nodes in the plan's order"
        )
    if plan.hosts and not same_host(plan.hosts[slot.node], host):
        problems.append(
            f"rank {rank_env.rank} belongs on {plan.hosts[slot.node]} (node {slot.node} of the plan), but runs on "
            f"{host}: start the nodes in the plan's order"
        )
    gpu = plan.job.cluster.node.gpu
    visible = torch.cuda.device_count() if gpu.kind == "cuda" else 0
    index = 0 if plan.job.cluster.node.is_mig else slot.gpu
    if gpu.kind == "cuda" and index >= visible:
        problems.append(
            f"rank {rank_env.rank} belongs on GPU {index} ({gpu.name}) of {host}, but this process sees {visible} CUDA "
            "devices: give the job whole nodes and leave CUDA_VISIBLE_DEVICES alone, or choose another cluster"
        )
    if problems:
        raise InputError(problems)
    if gpu.kind != "cuda":
        return Place(rank_env.rank, host, None, f"cpu:{rank_env.local_rank}")
    return Place(rank_env.rank, host, index, str(torch.cuda.get_device_properties(index).uuid))


def check_gathered(plan: Plan, place: Place) -> None:
    """Check over all ranks: no device twice, one host per node of the plan. Collective; every rank raises the same."""
    everyone: list[Place | None] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, place)
    problems = gathered_problems(plan, [p for p in everyone if p is not None])
    if problems:
        raise InputError(problems)


def gathered_problems(plan: Plan, places: list[Place]) -> list[str]:
    """Return contradictions between the ranks' locations."""
    problems = []
    devices: dict[tuple[str, int, str], int] = {}
    hosts: dict[int, Place] = {}
    for place in sorted(places, key=lambda p: p.rank):
        node = plan.placement.slot(place.rank).node
        first = devices.setdefault((place.host, node, place.device), place.rank)
        if first != place.rank:
            problems.append(
                f"ranks {first} and {place.rank} both run on {place.device} of {place.host}: one device, one rank"
            )
        other = hosts.setdefault(node, place)
        if other.host != place.host:
            problems.append(
                f"ranks {other.rank} and {place.rank} belong on one node of the plan (node {node}), "
                f"but run on {other.host} and {place.host}"
            )
    return problems


def same_host(planned: str, found: str) -> bool:
    """Return whether two names are the same host: equal, or equal except for a domain."""
    if planned == found or planned in ("localhost", "127.0.0.1"):
        return True
    short = planned.partition(".")[0], found.partition(".")[0]
    return short[0] == short[1] and "." not in (planned if "." in found else found)
