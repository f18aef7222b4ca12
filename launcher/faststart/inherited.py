"""What a process inherits from its shell, except streams, folder and environment."""

from __future__ import annotations

import os
import resource
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LIMITS = ("AS", "CORE", "CPU", "DATA", "FSIZE", "MEMLOCK", "NOFILE", "NPROC", "RSS", "STACK")


@dataclass(frozen=True)
class Inherited:
    """`fixed`: cgroup and namespaces, which a process cannot simply change; it can adopt the rest."""

    umask: int
    niceness: int
    cores: tuple[int, ...]
    limits: dict[str, tuple[int, int]]
    fixed: dict[str, str]

    @classmethod
    def of_this_process(cls) -> Inherited:
        umask = os.umask(0o022)
        os.umask(umask)
        return cls(
            umask=umask,
            niceness=os.getpriority(os.PRIO_PROCESS, 0),
            cores=tuple(sorted(os.sched_getaffinity(0))),
            limits={name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) for name in LIMITS},
            fixed=_fixed(),
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Inherited:
        limits = {name: (soft, hard) for name, (soft, hard) in data["limits"].items()}
        return cls(**{**data, "cores": tuple(data["cores"]), "limits": limits})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def take_on(self) -> None:
        """Apply all except `fixed` to this process; raises OSError or ValueError if that is not allowed."""
        os.umask(self.umask)
        if self.niceness != os.getpriority(os.PRIO_PROCESS, 0):
            os.setpriority(os.PRIO_PROCESS, 0, self.niceness)
        os.sched_setaffinity(0, self.cores)
        for name, limits in self.limits.items():
            kind = getattr(resource, f"RLIMIT_{name}")
            if resource.getrlimit(kind) != limits:
                resource.setrlimit(kind, limits)


def _fixed() -> dict[str, str]:
    groups = Path("/proc/self/cgroup").read_text(encoding="utf-8").strip()
    spaces = {f"{entry.name} namespace": str(entry.readlink()) for entry in sorted(Path("/proc/self/ns").iterdir())}
    return {"control group": groups, **spaces}
