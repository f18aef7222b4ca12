"""What one call can leave for the next in the same process: a snapshot, and what of it differs afterwards."""

from __future__ import annotations

import gc
import locale
import logging
import os
import random
import resource
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LIMITS = ("RLIMIT_NOFILE", "RLIMIT_CORE", "RLIMIT_AS", "RLIMIT_STACK", "RLIMIT_NPROC")
THREADS_END_S = 20.0


def process_state() -> dict[str, Any]:
    """Everything that is the whole process's: of Python, of the kernel, and of the libraries that are imported."""
    umask = os.umask(0o022)
    os.umask(umask)
    numbers = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    found: dict[str, Any] = {f"variable {name}": value for name, value in os.environ.items()}
    found |= {f"signal {number}": signal.getsignal(number) for number in numbers}
    found |= {f"limit {name}": resource.getrlimit(getattr(resource, name)) for name in LIMITS}
    found |= {f"descriptor {fd}": True for fd in _descriptors()}
    found |= {
        "blocked signals": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "folder": Path.cwd(), "umask": umask, "cores": os.sched_getaffinity(0), "nice": os.nice(0),
        "sys.path": tuple(sys.path), "sys.argv": tuple(sys.argv), "__main__": sys.modules["__main__"],
        "__mp_main__": sys.modules.get("__mp_main__"),
        "streams": (sys.stdin, sys.stdout, sys.stderr), "hooks": (sys.excepthook, threading.excepthook),
        "trace": (sys.gettrace(), threading.gettrace()), "recursion": sys.getrecursionlimit(),
        "switch interval": sys.getswitchinterval(), "collection": (gc.isenabled(), gc.get_threshold()),
        "warnings": tuple(map(str, warnings.filters)), "locale": locale.setlocale(locale.LC_ALL),
        "socket timeout": socket.getdefaulttimeout(), "random": random.getstate(),
        "threads": frozenset(t for t in threading.enumerate() if t.is_alive()),
        "root logger": (logging.root.level, tuple(logging.root.handlers), logging.root.manager.disable),
    }  # fmt: skip
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger):
            found[f"logger {name}"] = (logger.level, tuple(logger.handlers), logger.disabled, logger.propagate)
    for of_library in (_of_numpy, _of_torch, _of_hydra):
        found |= of_library()
    return found


def left_behind(before: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What is not as it was: (before, now). Threads that are about to end get the time to."""
    deadline = time.monotonic() + THREADS_END_S
    while set(threading.enumerate()) - before["threads"] and time.monotonic() < deadline:
        time.sleep(0.01)
    now = process_state()
    names = [name for name in {*before, *now} if not name.startswith("logger ") or name in before]
    return {n: (before.get(n), now.get(n)) for n in sorted(names) if before.get(n) != now.get(n)}


@contextmanager
def nothing_left_behind(*but: str) -> Iterator[None]:
    """Fail where the block changes what is the whole process's; `but`: what it is there to change."""
    before = process_state()
    yield
    left = {name: change for name, change in left_behind(before).items() if not name.startswith(but or ("\0",))}
    assert not left, left


def _descriptors() -> list[int]:
    fds = [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208
    return [fd for fd in fds if os.path.exists(f"/proc/self/fd/{fd}")]  # noqa: PTH110 (that of the listing has gone)


def _of_numpy() -> dict[str, Any]:
    if (numpy := sys.modules.get("numpy")) is None or "numpy.random" not in sys.modules:
        return {}
    state = numpy.random.get_state()
    return {"numpy random": (state[0], state[1].tobytes(), *state[2:]), "numpy errors": numpy.geterr()}


def _of_torch() -> dict[str, Any]:
    if (torch := sys.modules.get("torch")) is None:
        return {}
    found = {
        "torch dtype": torch.get_default_dtype(), "torch device": str(torch.get_default_device()),
        "torch threads": torch.get_num_threads(), "torch random": torch.get_rng_state().numpy().tobytes(),
        "torch deterministic": (
            torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "torch gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "torch matmul": torch.get_float32_matmul_precision(), "torch autocast": torch.is_autocast_enabled("cpu"),
        "torch anomaly": torch.is_anomaly_enabled(), "torch printing": str(torch._tensor_str.PRINT_OPTS),
        "torch denormals": torch.tensor(1e-310, dtype=torch.float64).mul(1).item() == 0,
        "torch sharing": torch.multiprocessing.get_sharing_strategy(),
    }  # fmt: skip
    if torch.distributed.is_available():
        world = torch.distributed.distributed_c10d._world
        found["process groups"] = frozenset(map(str, world.pg_names.values()))
    if (planner := sys.modules.get("torch.distributed.checkpoint.planner")) is not None:
        kept = [value for name, value in vars(planner.SavePlanner).items() if name.startswith("_cached")]
        found["plans of checkpoints"] = frozenset(key for cache in kept for key in cache)
    return found


def _of_hydra() -> dict[str, Any]:
    if (singleton := sys.modules.get("hydra.core.singleton")) is None:
        return {}
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    shared = (Plugins, ConfigStore)  # which the launcher adds itself to
    ones = {kind.__name__: one for kind, one in singleton.Singleton._instances.items() if kind not in shared}
    ones.pop("SourcesRegistry", None)
    resolvers = sys.modules["omegaconf.basecontainer"].BaseContainer._resolvers
    found: dict[str, Any] = {f"hydra {name}": (id(one), _plain(one)) for name, one in ones.items()}
    return found | {f"resolver {name}": one for name, one in resolvers.items()}


def _plain(one: Any) -> str:
    return str({name: str(value) for name, value in vars(one).items()})
