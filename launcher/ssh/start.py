"""Run a plan's ranks on hosts that ssh reaches."""

from __future__ import annotations

import sys
import uuid
from dataclasses import dataclass

from launcher import env
from launcher.agent.launch import Launch
from launcher.capture import capture
from launcher.console import notify
from launcher.errors import InputError
from launcher.files import write_text
from launcher.planner import read_plan
from launcher.rendezvous.authentication import new_secret
from launcher.run.code import pack
from launcher.run.folder import RunFolder, create_run_folder
from launcher.run.snapshot import copied_code
from launcher.secret import secrets_in
from launcher.ssh.hosts import Host
from launcher.ssh.record import read_ssh_launch
from launcher.ssh.request import Hello, address_argv, host_name, job_variables, ssh_argv
from launcher.ssh.settings import SshSettings
from launcher.ssh.watching import Connection, HostsWatch
from launcher.text import in_brief
from launcher.units import format_bytes

ASK_S = 10.0


def run_over_ssh(run_folder: RunFolder) -> int:
    """Start the agents of a prepared run on its hosts and wait for them; returns 0, or 1 where the run failed.

    Raises InputError where ssh cannot be run here.
    """
    folder = create_run_folder(run_folder.path)
    plan = read_plan(folder.present_plan)
    launch, settings = read_ssh_launch(folder)
    hosts, run_id = settings.all_hosts(), uuid.uuid4().hex
    coordinator = coordinator_of(hosts[0], settings, launch)
    secret, variables = new_secret(), job_variables(env.environment(), settings, launch.settings.environment)
    files = {
        path.name: path.read_text(encoding="utf-8")
        for path in (folder.plan, folder.plan_of_start, folder.launch)
        if path.is_file()
    }
    code = _Packed(folder)
    if launch.code_root is not None:
        write_text(folder.code_start, run_id)
    connections = [
        Connection(
            ssh_argv(host, settings, python=sys.executable),
            Hello(
                node=node,
                name=host.name,
                num_nodes=plan.placement.num_nodes,
                run_id=run_id,
                coordinator=coordinator,
                run_folder=str(folder.path),
                work_dir=str(launch.work_dir),
                variables=variables,
                files=files,
                secret=secret,
                code_root=str(launch.code_root) if launch.code_root else None,
            ),
            env.environment(),
            code,
        )
        for node, host in enumerate(hosts)
    ]
    refusal = InputError.exit_code if launch.settings.exit_code == "job" else None
    restarts, redial_s = launch.settings.max_restarts, launch.settings.rejoin_timeout_s
    watch = HostsWatch(connections, restarts, redial_s, notify, refusal=refusal)
    watch.listen(launch.settings.handled_signals())
    return watch.wait()


@dataclass
class _Packed:
    """The copy of a run's code, packed when a host first needs it, which it does where it has its own run folder."""

    folder: RunFolder
    _bytes: bytes | None = None

    def __call__(self) -> bytes:
        if self._bytes is None:
            code = copied_code(self.folder)
            self._bytes = pack(code)
            notify(f"code: {len(code.files)} files, packed {format_bytes(len(self._bytes))}, to hosts that need it")
        return self._bytes


def coordinator_of(first: Host, settings: SshSettings, launch: Launch) -> str:
    """Where the agents meet: launch.coordinator, else the first host as ssh resolves it, and the ports of the run."""
    if launch.settings.coordinator:
        return launch.settings.coordinator
    try:
        said = capture(address_argv(first, settings), environment=env.environment(), timeout_s=ASK_S)
    except OSError as error:
        raise InputError(f"ssh cannot be run here ({error.strerror}): install OpenSSH's client") from error
    if said.code:
        raise InputError(f"ssh does not take its options ({in_brief(said.err)}): correct launch.ssh_options")
    return host_name(said.out, first)


def left_behind(settings: SshSettings) -> str | None:
    """What the job does not get from this shell; raises InputError where a secret that is wanted is not here."""
    missing = [name for name in settings.secrets if env.get(name) is None]
    if missing:
        raise InputError(f"launch.secrets names {', '.join(missing)}, which your shell does not have: export it first")
    hidden = secrets_in(env.environment(), wanted=settings.secrets) if settings.export == "all" else ()
    if not hidden:
        return None
    return f"{', '.join(hidden)} stay behind, for they look like secrets: to carry one, launch.secrets=[{hidden[0]}]"
