"""One composition by Hydra: the files that are chosen, interpolations as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from hydra.version import VersionBase
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launcher.config.files import PRIMARY, primary, recorded
from launcher.config.folders import is_own
from launcher.config.interpolation import kept_resolvers
from launcher.errors import InputError

_BASE: dict[str, Any] = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}  # 1.4 wants none given


def composed(chosen: Sequence[str]) -> tuple[dict[str, Any], tuple[Path, ...]]:
    """What the chosen files say, and which files they are; raises InputError where they do not compose."""
    with _hydra(), recorded() as files:
        try:
            config = OmegaConf.to_container(compose(PRIMARY, overrides=list(chosen)), resolve=False)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise InputError(_problem(_first_line(error))) from error
        except RecursionError as error:
            own = ", ".join(str(file) for file in dict.fromkeys(files) if is_own(file))
            raise InputError(f"the defaults lists of configuration files form a cycle: {own}") from error
    plain = {str(key): value for key, value in config.items()} if isinstance(config, dict) else {}
    return plain, tuple(dict.fromkeys(files))


@contextmanager
def _hydra() -> Iterator[None]:
    """Hydra set up for one composition."""
    with own_state():
        primary()
        with initialize(config_path=None, job_name="launcher", **_BASE):
            yield


@contextmanager
def own_state() -> Iterator[None]:
    """Leave Hydra as it was: it keeps its state in singletons of the whole process, and the program may use it too."""
    with kept_resolvers():
        outer = Singleton._instances
        of_a_job = (GlobalHydra, HydraConfig, JobRuntime, VersionBase)
        Singleton._instances = {kind: one for kind, one in outer.items() if kind not in of_a_job}
        try:
            yield
        finally:
            ours = {kind: one for kind, one in Singleton._instances.items() if kind not in of_a_job}
            Singleton._instances = {**outer, **ours}


def _problem(said: str) -> str:
    """Hydra's words; of a cluster file without GPUs, as `launcher discover` writes it where nothing says them, ours."""
    if "'gpu@cluster.node.gpu'" not in said:
        return f"the configuration does not compose: {said}"
    return (
        "the cluster file does not say what its GPUs are (/gpu@node.gpu: ???): name an entry of configs/gpu, as "
        "a100_sxm_80g, in its first lines, or write one"
    )


def _first_line(error: BaseException) -> str:
    """The first line of a message, and of what caused it: Hydra's own next lines repeat the configuration."""
    texts = [str(e).strip() for e in (error, error.__cause__) if e is not None]
    lines = [text.splitlines()[0] for text in texts if text not in ("", "None")]
    return "; ".join(dict.fromkeys(lines))
