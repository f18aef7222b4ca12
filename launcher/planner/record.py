"""The plan: the seam between planning and running, written once as plan.json and read by every rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from launcher.cluster import Cluster, Gpu, Node
from launcher.errors import InputError
from launcher.files import read_json, write_json
from launcher.layout import Layout, Placement, RankGrid
from launcher.layout.job import Job
from launcher.model import Model, Training
from launcher.stacks import Stack

PLAN_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """One layout of one job, chosen, with its estimate and the reasons.

    `estimate` holds the public names (`step_time_s`, `memory`, …) as plain data. `hosts` names the host of each
    plan node once that is known, in plan order. `config` is the whole resolved configuration: what a recipe
    reads its own settings from.
    """

    job: Job
    layout: Layout
    estimate: Mapping[str, Any]
    why: tuple[str, ...]
    config: Mapping[str, Any]
    hosts: tuple[str, ...] = ()
    version: int = PLAN_VERSION

    @property
    def grid(self) -> RankGrid:
        return RankGrid.of(self.layout)

    @property
    def placement(self) -> Placement:
        return Placement(self.job.cluster, self.grid)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in plan.json."""
        return {
            "version": self.version,
            "cluster": cluster_to_dict(self.job.cluster),
            "model": asdict(self.job.model),
            "training": asdict(self.job.training),
            "stack": asdict(self.job.stack),
            "layout": asdict(self.layout),
            "hosts": list(self.hosts),
            "estimate": dict(self.estimate),
            "why": list(self.why),
            "config": dict(self.config),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """The inverse of `to_dict`; raises InputError for another version or a broken document."""
        version = data.get("version")
        if version != PLAN_VERSION:
            raise InputError(
                f"this plan.json has version {version!r}; this launcher reads version {PLAN_VERSION}: plan again"
            )
        try:
            layout = {**data["layout"], "layer_split": tuple(data["layout"]["layer_split"])}
            job = Job(
                cluster_from_dict(data["cluster"]),
                Model(**data["model"]),
                Training(**data["training"]),
                Stack(**{**data["stack"], "recompute_modes": tuple(data["stack"]["recompute_modes"])}),
            )
            return cls(
                job, Layout(**layout), data["estimate"], tuple(data["why"]), data["config"], tuple(data["hosts"])
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"plan.json is not a plan of this launcher ({error}): plan again") from error


def write_plan(plan: Plan, file: Path) -> Path:
    """Write a plan, complete or not at all; returns the file."""
    write_json(file, plan.to_dict())
    return file


def read_plan(file: Path) -> Plan:
    """Read a plan; raises InputError where that is impossible."""
    return Plan.from_dict(read_json(file, remedy="give a plan, or a run folder that has one, or plan again"))


def cluster_to_dict(cluster: Cluster) -> dict[str, Any]:
    """Plain data, as plan.json has it."""
    node, gpu = cluster.node, cluster.node.gpu
    plain_gpu = {f.name: getattr(gpu, f.name) for f in fields(gpu)} | {
        "peak_flops": dict(gpu.peak_flops),
        "gemm_flops": dict(gpu.gemm_flops),
    }
    plain_node = {f.name: getattr(node, f.name) for f in fields(node)} | {
        "gpu": plain_gpu,
        "busbw_bytes_per_s": dict(node.busbw_bytes_per_s),
    }
    plain = {f.name: getattr(cluster, f.name) for f in fields(cluster)}
    return plain | {"node": plain_node, "default_layout": dict(cluster.default_layout)}


def cluster_from_dict(data: Mapping[str, Any]) -> Cluster:
    """The inverse of `cluster_to_dict`; raises KeyError or TypeError for other data."""
    node = data["node"]
    domains = tuple(tuple(domain) for domain in node["domains"])
    return Cluster(**{**data, "node": Node(**{**node, "gpu": Gpu(**node["gpu"]), "domains": domains})})
