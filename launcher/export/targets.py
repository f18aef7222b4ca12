"""Every target by name; a target's module is imported only when it is asked for."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

from launcher.errors import InputError
from launcher.export.target import Target
from launcher.schema import unknown_key

PLUGINS = "nvlink_launcher.exports"  # entry points of other packages, each naming a Target
# Each is the module of its name in this room.
TARGETS = (
    "accelerate", "deepspeed", "hf", "hostfile", "jobset", "lightning", "megatron", "nemo", "rankfile", "skypilot",
    "srun", "torchrun", "torchtitan", "torchx", "trainjob",
)  # fmt: skip


def names() -> list[str]:
    """Every target that can be named, those of other packages included."""
    return sorted({*TARGETS, *(point.name for point in entry_points(group=PLUGINS))})


def target(name: str) -> Target:
    """The target of a name; raises InputError where there is none."""
    if name in TARGETS:
        found: Target = import_module(f"launcher.export.{name}").TARGET
        return found
    for point in entry_points(group=PLUGINS, name=name):
        try:
            loaded = point.load()
        except Exception as error:
            raise InputError(
                f"to={name}: {point.value} of {PLUGINS} cannot be imported ({type(error).__name__}: {error}): mend or "
                "uninstall the package that names it"
            ) from error
        if isinstance(loaded, Target):
            return loaded
        raise InputError(f"to={name}: {point.value} of {PLUGINS} is no launcher.export.target.Target")
    raise InputError(unknown_key(name, names()).replace("a known key", "a known export"))
