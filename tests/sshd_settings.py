"""Settings of every sshd that tests start. One key is the host's and that of the user who may come in."""

from __future__ import annotations

import subprocess
from pathlib import Path

SETTINGS = """
HostKey {folder}/key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
PermitRootLogin yes
UsePAM no
"""
CLIENT = {"StrictHostKeyChecking": "no", "UserKnownHostsFile": "/dev/null", "LogLevel": "ERROR"}


def write_settings(folder: Path, *more: str) -> Path:
    """A key and the settings in a folder; `more`: lines of the settings."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
    path = folder / "sshd_config"
    path.write_text("\n".join([SETTINGS.format(folder=folder), *more, ""]))
    return path
