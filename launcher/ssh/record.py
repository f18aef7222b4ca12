"""What launch.json says about a run over ssh: its hosts, and how ssh reaches them."""

from __future__ import annotations

from launcher.agent.launch import Launch, read_launch
from launcher.errors import InputError
from launcher.run.folder import RunFolder
from launcher.schema import from_plain
from launcher.ssh.settings import SshSettings


def read_ssh_launch(folder: RunFolder) -> tuple[Launch, SshSettings]:
    """What a run over ssh is started by; raises InputError where the folder was not prepared for it."""
    launch = read_launch(folder.launch)
    if launch.ssh is None:
        raise InputError(
            f"{folder.path} was not prepared for ssh: `launcher run launch=ssh run_dir={folder.path}` does it"
        )
    return launch, from_plain(SshSettings, launch.ssh, folder.launch.name)
