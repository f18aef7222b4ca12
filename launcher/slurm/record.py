"""The part of launch.json about a batch job: Slurm's settings, and other clusters that it may run on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher.agent.launch import Launch, read_launch
from launcher.agent.settings import LaunchSettings
from launcher.cluster import Cluster
from launcher.errors import InputError
from launcher.run.folder import RunFolder
from launcher.schema import from_plain, to_plain
from launcher.slurm.settings import SlurmSettings


@dataclass(frozen=True, kw_only=True)
class SlurmLaunch:
    """`clusters`: by Slurm's GRES type, the clusters that launch.gpu_clusters allows in addition to the planned one."""

    settings: SlurmSettings
    clusters: Mapping[str, Cluster] = field(default_factory=dict)


def slurm_launch(settings: LaunchSettings, slurm: SlurmLaunch) -> Launch:
    """Return how a batch job starts its ranks, in the folder from which it is submitted."""
    return Launch(settings=settings, work_dir=Path.cwd(), slurm=to_plain(slurm))


def read_slurm_launch(folder: RunFolder) -> tuple[Launch, SlurmLaunch]:
    """Read how a batch job is started; raises InputError if the folder was not prepared for Slurm."""
    launch = read_launch(folder.launch) if folder.launch.is_file() else None
    if launch is None or launch.slurm is None:
        raise InputError(f"{folder.path} was not submitted to Slurm: `launcher submit run_dir={folder.path}` does it")
    return launch, from_plain(SlurmLaunch, launch.slurm, folder.launch.name)


def setup_text(lines: Sequence[str]) -> str:
    """Return the set-up file that the batch script sources."""
    return "".join(f"{line}\n" for line in ("# launch.setup, sourced by the batch script before anything else", *lines))
