"""Slurm's keys of `launch.*` as one frozen value."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher.agent.settings import LaunchSettings, checked_signals, environment_key, export_key, secrets_key
from launcher.errors import InputError
from launcher.planner.options import BandwidthOptions
from launcher.schema import AUTO, key, read

PROGRESS, ALWAYS, NEVER = "progress", "always", "never"  # when a job is requeued
LONGEST_PLAIN_MINUTES = 60 * 24 * 2
TIME = re.compile(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d\d?(:\d\d){0,2}")
# Verbatim flags that would break what the launcher guarantees.
FORBIDDEN = {
    "--gpus-per-task": "each task would see only its own GPU, without NVLink to the others",
    "--ntasks-per-gpu": "each task would see only its own GPU, without NVLink to the others",
    "--wrap": "the launcher's own script is what runs",
}


def _text(value: Any) -> str:
    """Return a word or number as text."""
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value):
        raise ValueError("must be a text, or null to leave the option out")
    return str(value)


def _line(value: Any) -> str:
    """Return a text that Slurm can show on one line."""
    text = _text(value)
    if not text.isprintable():
        raise ValueError("contains a control character: give it on one line")
    return text


def _time(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= LONGEST_PLAIN_MINUTES:
        raise ValueError(
            "minutes is two days or more: YAML reads an unquoted 24:00:00 as a number; "
            "write such times in quotes, as '24:00:00' or '2-00:00:00'"
        )
    if not TIME.fullmatch(str(value)):
        raise ValueError("must be minutes, MM:SS, HH:MM:SS, D-HH or D-HH:MM:SS")
    return str(value)


def time_limit_s(time: str) -> int:
    """Return the seconds of a time limit in sbatch's forms: minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS."""
    days, _, clock = time.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if days:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _words(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
        raise ValueError("must be a list of texts")
    return tuple(value)


def _extra(value: Any) -> tuple[str, ...]:
    for word in _words(value):
        why = FORBIDDEN.get(word.partition("=")[0].partition(" ")[0])
        if why:
            raise InputError(f"launch.extra has {word!r}: {why}; take it out")
        if not word.startswith("-"):
            raise InputError(
                f"launch.extra has {word!r}, which sbatch would take as the script: write options as --name=value"
            )
    return tuple(value)


def _signal(value: Any) -> str:
    [found] = checked_signals([value])
    if found in (signal.SIGTERM, signal.SIGINT):
        raise ValueError(f"must not be {found.name.removeprefix('SIG')}, by which Slurm ends a job: USR1 or USR2")
    return found.name.removeprefix("SIG")


def _requeue(value: Any) -> str:
    """When a job comes back: NEVER, ALWAYS, or where it made progress."""
    words = {"true": PROGRESS, "false": NEVER, ALWAYS: ALWAYS}
    found = words.get(str(value).lower())
    if found is None:
        raise ValueError("must be true, false or always")
    return found


@dataclass(frozen=True, kw_only=True)
class Container:
    """The environment of the ranks: the bare node, or an image through apptainer or pyxis."""

    runtime: str = key("bare", choices=("bare", "apptainer", "pyxis"), meaning="what runs the container; bare: none")
    image: str | None = key(
        None, meaning=".sif file or docker://… (apptainer), image name or .sqsh file (pyxis); null: none"
    )
    mounts: tuple[str, ...] = key(
        (), example="[/data:/data]", meaning="folders in the container; the run folder and the working folder are added"
    )
    python: str = key("python3", meaning="interpreter inside the image: this package and torch must be installed there")
    options: tuple[str, ...] = key((), meaning="further options of `apptainer exec`, or --container-… options of srun")

    def problems(self) -> list[str]:
        """Return the broken rules between keys: a runtime needs an image."""
        if (self.runtime == "bare") == (self.image is None):
            return []
        return [
            f"launch.container.runtime={self.runtime} with image={self.image}: "
            "apptainer and pyxis need an image, bare takes none"
        ]


def _option(meaning: str, *, example: str | None = None, verbatim: bool = False) -> Any:
    """Declare a text key that is passed to sbatch unchanged."""
    return key(None, convert=_line, meaning=f"{meaning}; null: the site's own", example=example, verbatim=verbatim)


@dataclass(frozen=True, kw_only=True)
class SlurmSettings:
    """Settings of a Slurm site. Texts are passed to Slurm unchanged; None omits the option."""

    login: str | None = key(
        None, verbatim=True, example="me@login1",
        meaning="login node to submit from, as ssh takes it: the code is sent there; null: this machine",
    )  # fmt: skip
    login_folder: str = key(
        "launcher-jobs", verbatim=True, meaning="folder there that gets a folder for each job; relative to the home"
    )
    login_python: str | None = key(
        None, verbatim=True, example="/venv/bin/python",
        meaning="interpreter there that has the launcher; null: the path of the one that runs here",
    )  # fmt: skip
    login_ssh: str | None = key(
        None, verbatim=True, example="-i ~/.ssh/lab -p 2222", meaning="words for the ssh that goes there"
    )
    job_name: str | None = key(
        None, convert=_text, verbatim=True, meaning="name of the job; null: that of the run folder"
    )
    account: str | None = _option("account to charge")
    partition: str | None = _option("partition")
    qos: str | None = _option("quality of service")
    time: str | None = key(
        None, convert=_time, example="'24:00:00'",
        meaning="time limit: minutes, 'HH:MM:SS' or 'D-HH:MM:SS', in quotes (YAML reads 24:00:00 as a number); "
        "null: the site's own",
    )  # fmt: skip
    constraint: str | None = _option("required features of the nodes", verbatim=True)
    reservation: str | None = _option("reservation")
    exclude: str | None = _option("nodes to exclude", example="node[03,07]", verbatim=True)
    nodelist: str | None = _option("nodes to use", example="node[01-16]", verbatim=True)
    comment: str | None = _option("comment", verbatim=True)
    mail_user: str | None = _option("recipient of mail")
    mail_type: str | None = _option("events that send mail", example="END,FAIL", verbatim=True)
    switches: str | None = _option("leaf switches at most, with how long to wait for them", example="1@12:00:00")
    dependency: str | None = _option("jobs to wait for", example="afterok:17", verbatim=True)
    mem: str | None = _option("memory of a node as --mem takes it (0: all of it); never guessed")
    exclusive: bool = key(False, meaning="whole nodes")
    gpu_type: str | None = _option("GRES type of the GPUs", example="a100")
    gpus_per_node: int | None = key(
        AUTO, auto=True, unit="GPUs", minimum=0, meaning="auto: the plan's ranks on a node; none on a CPU cluster"
    )
    cpus_per_gpu: int | None = key(
        AUTO, auto=True, unit="cores", minimum=0, meaning="auto: cluster.node.cores over cluster.node.num_gpus"
    )
    extra: tuple[str, ...] = key(
        (),
        convert=_extra,
        example="[--licenses=fs, --nice=100]",
        meaning="additional sbatch options, verbatim and last",
    )
    setup: tuple[str, ...] = key((), example="['module load cuda']", meaning="shell lines to run first")
    environment: Mapping[str, str] = environment_key()
    secrets: tuple[str, ...] = secrets_key()
    export: str = export_key()
    container: Container = key(Container(), meaning="where the ranks run")
    signal: str = key(
        "USR1", convert=_signal,
        meaning="what Slurm sends the job before its time limit or at preemption: checkpoint, then requeue",
    )  # fmt: skip
    signal_lead_s: int = key(
        300, unit="s", minimum=1,
        meaning="time before the limit (Slurm checks every 30 s, so it may come that much earlier)",
    )  # fmt: skip
    requeue: str = key(
        True, convert=_requeue, example="always",
        meaning="after that signal, and when a node fails: true: where a newer checkpoint was written since the start; "
        "always: also without; false: never",
    )  # fmt: skip
    progress: str | None = key(
        None, verbatim=True, example="ckpts",
        meaning="folder or file that your script saves to: what is newer there counts as progress; as seen from the "
        "folder of the submission",
    )  # fmt: skip
    max_requeues: int = key(50, unit="requeues", minimum=0, meaning="maximum number of requeues")
    replan: str = key(
        "never", choices=("never", "shrink", "any"),
        meaning="shrink: fewer nodes than planned get a new layout; any: so do more nodes and other GPUs",
    )  # fmt: skip
    min_nodes: int | None = key(None, unit="nodes", minimum=1, meaning="with replan: fewest to start on; null: 1")
    gpu_clusters: Mapping[str, str] = key(
        {}, example="{h100: dgx_h100}",
        meaning="with replan=any: GPUs that the job may land on as well: Slurm's GRES type, cluster file",
    )  # fmt: skip
    spares: int = key(
        0, unit="nodes", minimum=0,
        meaning="additional nodes, if Slurm has them free, to replace bad and lost ones",
    )  # fmt: skip
    preflight: bool = key(True, meaning="check every node before the ranks start")
    check_bandwidth: bool | None = key(
        AUTO, auto=True,
        meaning="then measure each node and pairs of nodes, a minute at most; auto: with GPUs on two nodes or more",
    )  # fmt: skip
    bandwidth_threshold: float = key(
        BandwidthOptions.threshold, unit="1", minimum=0, below=1,
        meaning="a node below this fraction of the median is slow and is excluded",
    )  # fmt: skip
    array_limit: int | None = key(
        None, unit="runs", minimum=1, meaning="maximum number of a sweep's runs at the same time; null: all"
    )

    def problems(self) -> list[str]:
        """Return the broken rules between keys: of other GPUs to run on."""
        found = []
        if self.gpu_clusters and self.replan != "any":
            found.append("launch.gpu_clusters names other GPUs to run on, which needs launch.replan=any")
        if self.gpu_clusters and self.gpu_type:
            found.append(
                f"launch.gpu_type={self.gpu_type} keeps the job from the GPUs of launch.gpu_clusters: drop one"
            )
        return found

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SlurmSettings:
        """Read Slurm's keys of the group `launch`; raises InputError with every problem in it."""
        return read(cls, config, "launch", siblings=(LaunchSettings,))

    @property
    def comes_back(self) -> bool:
        """Whether the job may be requeued at all."""
        return self.requeue != NEVER

    def fewest_nodes(self, planned: int) -> int:
        """Return the smallest number of nodes on which the job may start, given the planned number."""
        return planned if self.replan == "never" else min(planned, self.min_nodes or 1)
