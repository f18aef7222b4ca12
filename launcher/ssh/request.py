"""Hosts and settings → the exact ssh command of each, and what goes through its standard input. Pure.

Nothing that is secret, and nothing of the plan, is in a command line: ssh's standard input brings it to the host.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from launcher import __version__
from launcher.errors import InputError
from launcher.secret import secrets_in
from launcher.ssh.hosts import Host
from launcher.ssh.settings import SshSettings

KEEPER = "launcher.ssh.keeper"
# ssh looks every 5 s whether the host answers, and ends after three times without an answer (ssh_config(5)). It asks
# for no password, and leaves no shared connection behind.
OPTIONS = {
    "BatchMode": "yes", "ConnectTimeout": "15", "ServerAliveInterval": "5", "ServerAliveCountMax": "3",
    "ControlMaster": "no", "ControlPath": "none", "ForwardX11": "no", "ForwardAgent": "no",
    "ClearAllForwardings": "yes",
}  # fmt: skip
SILENT_S = 15.0  # a host that hears nothing from here for so long has lost its connection
# What belongs to this host or this session, and means nothing on another.
OF_THIS_HOST = re.compile(
    r"HOME|USER|LOGNAME|SHELL|HOST|HOSTNAME|PWD|OLDPWD|SHLVL|_|MAIL|DISPLAY|XAUTHORITY|TMUX\w*|STY|WINDOWID"
    r"|(SSH|XDG|DBUS|WAYLAND|SLURM|SLURMD|SBATCH|SRUN|SALLOC)_\w+|CUDA_VISIBLE_DEVICES|NVIDIA_VISIBLE_DEVICES|LAUNCHER_\w+"
)


@dataclass(frozen=True, kw_only=True)
class Hello:
    """The first message to a host. `files`: name in the run folder → content, where the folder is not shared.

    `code_root`: where the code was that the run has a copy of; `code_bytes`: length of the packed copy that follows.
    """

    node: int
    name: str
    num_nodes: int
    run_id: str
    coordinator: str
    run_folder: str
    work_dir: str
    variables: Mapping[str, str] = field(repr=False)
    files: Mapping[str, str] = field(repr=False)
    secret: str = field(repr=False)
    code_root: str | None = None
    code_bytes: int = 0
    version: str = __version__
    silent_s: float = SILENT_S

    def line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"


def read_hello(line: bytes) -> Hello:
    """What `Hello.line` wrote; raises InputError where another version of the launcher wrote it."""
    data: dict[str, Any] = json.loads(line)
    if data.get("version") != __version__:
        raise InputError(
            f"this host has version {__version__} of the launcher, and {data.get('version')} starts the run: install "
            "the same, or name its interpreter by launch.host_python"
        )
    return Hello(**data)


def ssh_argv(
    host: Host, settings: SshSettings, *, python: str, module: str = KEEPER, words: Sequence[str] = ()
) -> tuple[str, ...]:
    """The ssh command that runs a module of ours, by default the keeper of an agent; the shell gets quoted words."""
    remote = shlex.join([settings.host_python or python, "-P", "-m", module, *words])
    return (*_client(host, settings), "-T", "--", host.destination, f"exec {remote}")


def address_argv(host: Host, settings: SshSettings) -> tuple[str, ...]:
    """The command by which ssh says how it would reach a host; it connects to nobody."""
    return (*_client(host, settings), "-G", "--", host.destination)


def _client(host: Host, settings: SshSettings) -> tuple[str, ...]:
    port = ("-p", str(host.port)) if host.port else ()
    ours = (word for name, value in OPTIONS.items() for word in ("-o", f"{name}={value}"))
    return ("ssh", *settings.ssh_options, *port, *ours)


def host_name(said: str, host: Host) -> str:
    """The name or address behind a host, from what `ssh -G` said; the host's own where it said none."""
    found = re.search(r"^hostname (\S+)$", said, re.MULTILINE)
    return found[1] if found else host.name


def job_variables(environment: Mapping[str, str], settings: SshSettings, given: Mapping[str, str]) -> dict[str, str]:
    """The variables of this shell that the job gets, and launch.environment; of secrets those in launch.secrets."""
    hidden = secrets_in(environment, wanted=settings.secrets)
    passed = {
        name: value
        for name, value in environment.items()
        if name in settings.secrets
        or (settings.export == "all" and name not in hidden and not OF_THIS_HOST.fullmatch(name))
    }
    return {**passed, **given}
