"""The Slurm keys of `launch.*` as one frozen value; configs/launch/slurm.yaml says what each means."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from signal import Signals
from types import MappingProxyType
from typing import Any

from launcher.config.fields import AUTO, Fields, raise_problems
from launcher.planner.options import BandwidthOptions
from launcher.secret import is_secret_name

RUNTIMES = ("bare", "apptainer", "pyxis")
REPLANS = ("never", "shrink", "any")
EXPORTS = ("all", "none")
LONGEST_PLAIN_MINUTES = 60 * 24 * 2
TIME = re.compile(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d\d?(:\d\d){0,2}")
VARIABLE_NAME = re.compile(r"[A-Za-z_]\w*")
# Verbatim flags that would undo what the launcher has to hold.
FORBIDDEN = {
    "--gpus-per-task": "each task would see only its own GPU, without NVLink to the others",
    "--ntasks-per-gpu": "each task would see only its own GPU, without NVLink to the others",
    "--wrap": "the launcher's own script is what runs",
}


@dataclass(frozen=True)
class Container:
    """Where the ranks run: on the bare node, or in an image through apptainer or pyxis."""

    runtime: str = "bare"
    image: str | None = None
    mounts: tuple[str, ...] = ()
    python: str = "python3"
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class SlurmSettings:
    """What a site needs to be told. Texts go to Slurm as they are, None leaves the option out."""

    job_name: str | None = None
    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    time: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    exclude: str | None = None
    nodelist: str | None = None
    comment: str | None = None
    mail_user: str | None = None
    mail_type: str | None = None
    switches: str | None = None
    dependency: str | None = None
    mem: str | None = None
    exclusive: bool = False
    gpu_type: str | None = None
    gpus_per_node: int | None = None
    cpus_per_gpu: int | None = None
    extra: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    secrets: tuple[str, ...] = ()
    export: str = "all"
    signal: str = "USR1"
    signal_lead_s: int = 300
    requeue: bool = True
    max_requeues: int = 50
    replan: str = "never"
    min_nodes: int | None = None
    gpu_clusters: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    spares: int = 0
    preflight: bool = True
    check_bandwidth: bool | None = None
    bandwidth_threshold: float = BandwidthOptions.threshold
    array_limit: int | None = None
    container: Container = Container()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SlurmSettings:
        """Read the `launch` group of a resolved configuration; raises InputError with every problem in it.

        Keys of starting ranks (LaunchSettings) are passed over.
        """
        keys = Fields({key: value for key, value in config.items() if key in SLURM_KEYS}, "launch")
        texts = {key: _text(keys, key) for key in TEXT_KEYS}
        settings = cls(
            **texts,
            time=_time(keys),
            exclusive=keys.flag("exclusive", False),
            gpus_per_node=_auto_count(keys, "gpus_per_node", minimum=0),
            cpus_per_gpu=_auto_count(keys, "cpus_per_gpu", minimum=0),
            extra=_extra(keys),
            setup=_words(keys, "setup"),
            environment=_environment(keys),
            secrets=_names(keys, "secrets"),
            export=keys.choice("export", EXPORTS, "all"),
            signal=_signal(keys),
            signal_lead_s=keys.integer("signal_lead_s", 300, minimum=1),
            requeue=keys.flag("requeue", True),
            max_requeues=keys.integer("max_requeues", 50, minimum=0),
            replan=keys.choice("replan", REPLANS, "never"),
            min_nodes=_count(keys, "min_nodes"),
            gpu_clusters=_gpu_clusters(keys),
            spares=keys.integer("spares", 0, minimum=0),
            preflight=keys.flag("preflight", True),
            check_bandwidth=keys.auto_flag("check_bandwidth"),
            bandwidth_threshold=keys.number("bandwidth_threshold", cls.bandwidth_threshold, minimum=0.0),
            array_limit=_count(keys, "array_limit"),
            container=_container(keys.nested("container")),
        )
        keys.close()
        if settings.gpu_clusters and settings.replan != "any":
            keys.problem("launch.gpu_clusters names other GPUs to run on, which needs launch.replan=any")
        if settings.gpu_clusters and settings.gpu_type:
            keys.problem(
                f"launch.gpu_type={settings.gpu_type} keeps the job from the GPUs of launch.gpu_clusters: drop one"
            )
        raise_problems(keys.problems)
        return settings

    def fewest_nodes(self, planned: int) -> int:
        """On how many nodes the job may start, of the so many that it was planned for."""
        return planned if self.replan == "never" else min(planned, self.min_nodes or 1)


SLURM_KEYS = frozenset(f.name for f in fields(SlurmSettings))
TEXT_KEYS = tuple(f.name for f in fields(SlurmSettings) if f.type == "str | None" and f.name != "time")


def _text(keys: Fields, key: str) -> str | None:
    """A word or number as text; what Slurm could not show on one line is refused."""
    value = keys.raw(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value):
        keys.problem(f"launch.{key} = {value!r} must be a text, or null to leave the option out")
        return None
    if key != "job_name" and not str(value).isprintable():
        keys.problem(f"launch.{key} = {value!r} holds a control character: give it on one line")
        return None
    return str(value)


def _time(keys: Fields) -> str | None:
    value = keys.raw("time")
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value >= LONGEST_PLAIN_MINUTES:
        keys.problem(
            f"launch.time = {value} minutes is two days or more: YAML reads an unquoted 24:00:00 as a number; "
            "write such times in quotes, as '24:00:00' or '2-00:00:00'"
        )
    elif not TIME.fullmatch(str(value)):
        keys.problem(f"launch.time = {value!r} must be minutes, MM:SS, HH:MM:SS, D-HH or D-HH:MM:SS")
    return str(value)


def time_limit_s(time: str) -> int:
    """Seconds of a time limit as sbatch takes it: minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS."""
    days, _, clock = time.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if days:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _count(keys: Fields, key: str) -> int | None:
    return None if keys.raw(key) is None else keys.integer(key, minimum=1)


def _auto_count(keys: Fields, key: str, *, minimum: int) -> int | None:
    return None if keys.raw(key, AUTO) in (AUTO, None) else keys.integer(key, minimum=minimum)


def _words(keys: Fields, key: str) -> tuple[str, ...]:
    value = keys.raw(key, ())
    if isinstance(value, list | tuple) and all(isinstance(word, str) for word in value):
        return tuple(value)
    keys.problem(f"launch.{key} = {value!r} must be a list of texts")
    return ()


def _extra(keys: Fields) -> tuple[str, ...]:
    words = _words(keys, "extra")
    for word in words:
        why = FORBIDDEN.get(word.partition("=")[0].partition(" ")[0])
        if why:
            keys.problem(f"launch.extra has {word!r}: {why}; take it out")
        elif not word.startswith("-"):
            keys.problem(
                f"launch.extra has {word!r}, which would be taken for the script: write options as --name=value"
            )
    return words


def _signal(keys: Fields) -> str:
    name = keys.text("signal", "USR1").upper().removeprefix("SIG")
    if name not in {known.name.removeprefix("SIG") for known in Signals} - {"KILL", "STOP"}:
        keys.problem(f"launch.signal = {name!r} is no signal that can be caught: USR1, USR2, TERM, HUP …")
    return name


def _names(keys: Fields, key: str) -> tuple[str, ...]:
    words = _words(keys, key)
    for word in words:
        if not VARIABLE_NAME.fullmatch(word):
            keys.problem(f"launch.{key} has an entry that is no variable name: give names only, never values")
    return tuple(word for word in words if VARIABLE_NAME.fullmatch(word))


def _environment(keys: Fields) -> dict[str, str]:
    given = keys.mapping("environment")
    for name, value in given.items():
        if not VARIABLE_NAME.fullmatch(str(name)) or isinstance(value, dict | list) or value is None:
            keys.problem(f"launch.environment.{name} must be a variable name with one value")
        elif is_secret_name(str(name)):
            keys.problem(
                f"launch.environment.{name} would be written to a file: export it in your shell and name it in "
                f"launch.secrets=[{name}]"
            )
    return {str(name): str(value) for name, value in given.items()}


def _gpu_clusters(keys: Fields) -> dict[str, str]:
    given = keys.mapping("gpu_clusters")
    for gpu_type, name in given.items():
        if not isinstance(name, str):
            keys.problem(f"launch.gpu_clusters.{gpu_type} = {name!r} must be the name of a cluster file, as dgx_h100")
    return {str(gpu_type): str(name) for gpu_type, name in given.items()}


def _container(keys: Fields) -> Container:
    container = Container(
        runtime=keys.choice("runtime", RUNTIMES, "bare"),
        image=keys.optional_text("image"),
        mounts=_plain_words(keys, "mounts"),
        python=keys.text("python", "python3"),
        options=_plain_words(keys, "options"),
    )
    keys.close()
    if (container.runtime == "bare") != (container.image is None):
        keys.problem(
            f"launch.container.runtime={container.runtime} with image={container.image}: "
            "apptainer and pyxis need an image, bare takes none"
        )
    return container


def _plain_words(keys: Fields, key: str) -> tuple[str, ...]:
    value = keys.raw(key, ())
    if isinstance(value, list | tuple) and all(isinstance(word, str) and word for word in value):
        return tuple(value)
    keys.problem(f"launch.container.{key} = {value!r} must be a list of texts")
    return ()
