"""The keys of `launch.*` that say which hosts ssh reaches, and how, as one frozen value."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.agent.settings import LaunchSettings, export_key, secrets_key
from launcher.errors import InputError
from launcher.schema import key, read
from launcher.ssh.hosts import Host, parse_host, read_hostfile


def _hosts(value: Any) -> tuple[Host, ...]:
    words = value.strip("[]").split(",") if isinstance(value, str) else value
    if not isinstance(words, list | tuple) or not all(isinstance(word, str | int) for word in words):
        raise ValueError("must be a list of hosts: [node1,user@node2:8]")
    return tuple(parse_host(str(word)) for word in words if str(word).strip())


def _words(value: Any) -> tuple[str, ...]:
    """The words of a text, as a shell would part them."""
    if value is None or value == "":
        return ()
    try:
        return tuple(shlex.split(value)) if isinstance(value, str) else tuple(str(word) for word in value)
    except (TypeError, ValueError) as error:
        raise ValueError("must be words as for a shell, with quotes closed") from error


@dataclass(frozen=True, kw_only=True)
class SshSettings:
    """Where agents start, and how ssh gets there. The nodes of the plan are the hosts in the order given."""

    hosts: tuple[Host, ...] = key(
        (), convert=_hosts, verbatim=True, example="[node1,me@node2:8]",
        meaning="a node each, in the plan's order: [USER@]HOST[:SLOTS]; slots are ranks, HOST is what ssh takes",
    )  # fmt: skip
    hostfile: str | None = key(
        None, verbatim=True, example="hosts.txt",
        meaning="the hosts, a line each, as mpirun and DeepSpeed take them: HOST slots=8, also port=N, user=NAME",
    )  # fmt: skip
    ssh_options: tuple[str, ...] = key(
        "", convert=_words, verbatim=True, example="-i ~/.ssh/lab -o Port=2222",
        meaning="words for ssh before those of the launcher: the first that ssh is given counts",
    )  # fmt: skip
    host_python: str | None = key(
        None, verbatim=True, example="/venv/bin/python",
        meaning="interpreter on the hosts that has the launcher; null: the path of the one that runs here",
    )  # fmt: skip
    export: str = export_key()
    secrets: tuple[str, ...] = secrets_key()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SshSettings:
        """Read these keys of a group `launch`; raises InputError with every problem in it."""
        return read(cls, config, "launch", siblings=(LaunchSettings,))

    def all_hosts(self) -> tuple[Host, ...]:
        """The hosts, by the key that is given; raises InputError where neither or both are, or a host comes twice."""
        if bool(self.hosts) == bool(self.hostfile):
            given = "both are given" if self.hosts else "neither is given"
            raise InputError(f"launch=ssh needs launch.hosts=[node1,node2] or launch.hostfile=FILE, and {given}")
        hosts = self.hosts or _read(Path(str(self.hostfile)))
        twice = sorted({f"{h.destination}" for h in hosts if sum(o.name == h.name for o in hosts) > 1})
        if twice:
            raise InputError(
                f"{', '.join(twice)} is named more than once: one agent runs on a host, with all its slots"
            )
        return hosts


def _read(file: Path) -> tuple[Host, ...]:
    try:
        return read_hostfile(file.read_text(encoding="utf-8"), name=str(file))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InputError(f"launch.hostfile={file} cannot be read ({why})") from error
