"""Every sshd that tests start: its settings, and one that stands for a login node. The host's key is the user's."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from ports import free_port

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # sshd is in one of these

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


@contextmanager
def login_node(shell: str, *more: str) -> Iterator[tuple[Sequence[str], Path]]:
    """An sshd on loopback that runs the script `shell` in place of each command, which is in SSH_ORIGINAL_COMMAND.

    Gives the words of the launcher that lead there, and its folder: the script is `shell` in it, and may be replaced.
    `more`: lines of its settings. Skips where something is missing.
    """
    if missing := [name for name in ("sshd", "ssh", "ssh-keygen") if not shutil.which(name, path=PATH)]:
        pytest.skip(f"no {', '.join(missing)} here: install openssh-server and openssh-client")
    try:
        user = f"{pwd.getpwuid(os.geteuid()).pw_name}@127.0.0.1"
    except KeyError:
        pytest.skip(f"ssh and ssh-keygen work for no user without an entry in passwd, as {os.geteuid()}")
    folder = Path(tempfile.mkdtemp(prefix="launcher-login-", dir="/tmp"))
    port = free_port()
    (folder / "shell").write_text("true")
    settings = write_settings(
        folder, f"Port {port}", "ListenAddress 127.0.0.1", *more, f"ForceCommand sh {folder}/shell"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    argv = [str(shutil.which("sshd", path=PATH)), "-D", "-e", "-f", str(settings)]
    sshd = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    options = " ".join([f"-p {port} -i {folder}/key", *(f"-o {name}={value}" for name, value in CLIENT.items())])
    try:
        deadline = time.monotonic() + 120
        while subprocess.run(["ssh", *options.split(), user, "true"]).returncode:
            assert time.monotonic() < deadline and sshd.poll() is None
            time.sleep(0.1)
        (folder / "shell").write_text(shell)
        yield [f"launch.login={user}", f"launch.login_ssh={options}", f"launch.login_folder={folder}/jobs"], folder
    finally:
        sshd.kill()
        sshd.wait()
        shutil.rmtree(folder)
