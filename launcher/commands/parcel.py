"""The first line of what is sent to a login node (launch.login); the packed code follows it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from launcher import __version__
from launcher.errors import InputError
from launcher.schema import from_plain

MODULE = "launcher.commands.arrival"  # what reads it there


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """What is submitted. `parent`, `name`: of the job's folder; `inside`: where in the code the command was typed."""

    version: str
    parent: str
    name: str
    inside: str
    words: tuple[str, ...]
    args: tuple[str, ...]

    def line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"


def read_parcel(line: bytes) -> Parcel:
    """What `Parcel.line` wrote; raises InputError where another version of the launcher wrote it, or none."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise InputError("nobody sent a job: `launcher submit launch.login=…` on another machine starts this command")
    if data.get("version") != __version__:
        raise InputError(
            f"the login node has version {__version__} of the launcher, and this machine {data.get('version')}: "
            "install the same, or name its interpreter by launch.login_python"
        )
    return from_plain(Parcel, data, "the parcel")
