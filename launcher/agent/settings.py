"""The keys of `launch.*` as one frozen value."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher.config.fields import AUTO, Fields, raise_problems
from launcher.errors import InputError
from launcher.rendezvous.config import split_endpoint
from launcher.slurm.settings import SLURM_KEYS

STARTS = ("fork", "spawn")
CONSOLES = ("rank0", "all")
WARM = ("auto", "never")
_UNCATCHABLE = {signal.SIGKILL, signal.SIGSTOP}


@dataclass(frozen=True)
class LaunchSettings:
    """How ranks are started and kept alive; configs/launch/local.yaml says what each key means."""

    start: str = "fork"
    preload: tuple[str, ...] = ()
    console: str = "rank0"
    omp_num_threads: int | None = None
    max_restarts: int = 0
    refill_steps: int = 100
    stop_signals: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
    grace_s: float = 30.0
    kill_after_s: float = 5.0
    hang_timeout_s: float | None = 600.0
    straggler_factor: float = 1.5
    straggler_steps: int = 20
    join_timeout_s: float = 600.0
    rejoin_timeout_s: float = 120.0
    spare_wait_s: float = 10.0
    shrink_to: int | None = None
    last_call_s: float = 30.0
    coordinator: str | None = None
    warm: str = "auto"
    warm_idle_s: float = 3600.0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LaunchSettings:
        """Read the `launch` group of a resolved configuration; raises InputError with every problem in it."""
        default = cls()
        fields = Fields({key: value for key, value in config.items() if key not in SLURM_KEYS}, "launch")
        settings = cls(
            start=fields.choice("start", STARTS, default.start),
            preload=_words(fields, "preload", ()),
            console=fields.choice("console", CONSOLES, default.console),
            omp_num_threads=_auto(fields, "omp_num_threads"),
            max_restarts=fields.integer("max_restarts", default.max_restarts, minimum=0),
            refill_steps=fields.integer("refill_steps", default.refill_steps, minimum=1),
            stop_signals=_signals(fields, "stop_signals", default.stop_signals),
            grace_s=fields.number("grace_s", default.grace_s, minimum=0.0),
            kill_after_s=fields.number("kill_after_s", default.kill_after_s, minimum=0.0),
            hang_timeout_s=_timeout(fields, "hang_timeout_s", default.hang_timeout_s),
            straggler_factor=fields.number("straggler_factor", default.straggler_factor, minimum=1.0),
            straggler_steps=fields.integer("straggler_steps", default.straggler_steps, minimum=1),
            join_timeout_s=fields.number("join_timeout_s", default.join_timeout_s, minimum=0.1),
            rejoin_timeout_s=fields.number("rejoin_timeout_s", default.rejoin_timeout_s, minimum=0.1),
            spare_wait_s=fields.number("spare_wait_s", default.spare_wait_s, minimum=0.0),
            shrink_to=None if fields.raw("shrink_to") is None else fields.integer("shrink_to", minimum=1),
            last_call_s=fields.number("last_call_s", default.last_call_s, minimum=0.0),
            coordinator=_endpoint(fields, "coordinator"),
            warm=fields.choice("warm", WARM, default.warm),
            warm_idle_s=fields.number("warm_idle_s", default.warm_idle_s, minimum=1.0),
        )
        fields.close()
        raise_problems(fields.problems)
        return settings


def as_config(settings: LaunchSettings) -> dict[str, Any]:
    """Plain data that `from_config` reads back."""
    plain = {name: getattr(settings, name) for name in settings.__dataclass_fields__}
    return plain | {
        "preload": list(settings.preload),
        "omp_num_threads": settings.omp_num_threads or AUTO,
        "stop_signals": [s.name for s in settings.stop_signals],
    }


def _words(fields: Fields, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
    value = fields.raw(key, default)
    if isinstance(value, list | tuple) and all(isinstance(word, str) for word in value):
        return tuple(value)
    fields.problem(f"launch.{key} = {value!r} must be a list of words, as [torch.distributed.tensor]")
    return ()


def _auto(fields: Fields, key: str) -> int | None:
    return None if fields.raw(key, AUTO) in (AUTO, None) else fields.auto_integer(key)


def _timeout(fields: Fields, key: str, default: float | None) -> float | None:
    value = fields.raw(key, default)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        fields.problem(f"launch.{key} = {value!r} must be a number of seconds above 0, or null for never")
        return default
    return float(value)


def _signals(fields: Fields, key: str, default: tuple[signal.Signals, ...]) -> tuple[signal.Signals, ...]:
    value = fields.raw(key, None)
    if value is None:
        return default
    words = value if isinstance(value, list | tuple) else [value]
    known = {s.name.removeprefix("SIG"): s for s in signal.Signals if s not in _UNCATCHABLE}
    found = []
    for word in words:
        name = str(word).upper().removeprefix("SIG")
        if name in known:
            found.append(known[name])
        else:
            fields.problem(
                f"launch.{key} has {word!r}, which is no signal that can be caught: INT, TERM, USR1, USR2, HUP …"
            )
    return tuple(found)


def _endpoint(fields: Fields, key: str) -> str | None:
    value = fields.raw(key, None)
    if value is None:
        return None
    try:
        split_endpoint(str(value))
    except InputError as error:
        fields.problem(f"launch.{key} = {error}")
        return None
    return str(value)
