"""launch.login=user@login1: submit from a login node, and follow the job from here.

`submit` sends the code there by ssh; `status`, `logs`, `cancel` and `report` of the folder that it leaves here run
there.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from launcher import __version__, env, process
from launcher.commands.claim import claimed, may_claim
from launcher.commands.given_plan import named_folder
from launcher.commands.invocation import Invocation
from launcher.commands.login_answer import page, submitted
from launcher.commands.named import resolved
from launcher.commands.parcel import MODULE, Parcel
from launcher.commands.programs import short_name
from launcher.config.settings import Settings
from launcher.console import say
from launcher.errors import InputError, LauncherError
from launcher.files import read_json, user_path, write_json, write_text, written_as
from launcher.run.code import CodeFiles, find_code, pack
from launcher.run.folder import RunFolder, default_name
from launcher.run.owner import hand_to_job, this_process
from launcher.run.provenance import write_provenance
from launcher.schema import from_plain, to_plain
from launcher.slurm.settings import SlurmSettings
from launcher.ssh.hosts import parse_host
from launcher.ssh.request import ssh_argv
from launcher.ssh.settings import SshSettings
from launcher.units import format_bytes

OWN_KEYS = ("launch.login", "launch.snapshot", "launch.code", "run_dir", "output", "dry_run")  # not for the login node
NO_CONNECTION = 255  # ssh's own exit code
FOLLOWED = ("status", "logs", "cancel", "report")


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """login.json: where a job is. `folder`: its run folder there."""

    login: str
    ssh: str
    python: str
    folder: str

    def argv(self, module: str, words: Sequence[str] = ()) -> tuple[str, ...]:
        """The ssh command that runs a module there."""
        try:
            host, options = parse_host(self.login), tuple(shlex.split(self.ssh))
            if host.slots is not None:
                raise ValueError("a port goes into launch.login_ssh='-p PORT'")
        except ValueError as error:
            raise InputError(f"launch.login={self.login} or launch.login_ssh: {error}") from error
        settings = SshSettings(ssh_options=options, host_python=self.python)
        return ssh_argv(host, settings, python=self.python, module=module, words=words)


def submit_there(invocation: Invocation, settings: Settings, slurm: SlurmSettings) -> int:
    """Send the code to the login node and submit there; prints the job's id. Raises InputError, LauncherError."""
    path, owner, launch = named_folder(settings), this_process(submitting=True), settings.options.launch
    if path is not None:
        may_claim(path, owner)
    program = settings.options.own_program
    own = user_path(program.target).resolve().parent if program is not None and program.kind == "script" else Path.cwd()
    code = find_code(Path.cwd() if launch.code else own, launch.code)
    name = default_name(path.name if path else short_name(program) if program else "job")
    there = Elsewhere(
        login=str(slurm.login),
        ssh=slurm.login_ssh or "",
        python=slurm.login_python or sys.executable,
        folder=f"{slurm.login_folder}/{name}",
    )
    packed, parcel = pack(code), _parcel(invocation, code, slurm.login_folder, name)
    argv = there.argv(MODULE)
    say(f"code: {code.describe()}, packed {format_bytes(len(packed))}, to {there.login}:{there.folder}")
    if settings.options.dry_run:
        print(f"{shlex.join(argv)}\n# there: {shlex.join(['launcher', 'submit', *parcel.words, '--', *parcel.args])}")
        return 0
    done = _ssh(argv, there, data=parcel.line() + packed)
    answer = submitted(done.stdout, python=there.python, login=there.login, code=done.returncode)
    if done.returncode:
        print(json.dumps(answer) if settings.options.output == "json" else "", end="")
        return done.returncode
    with claimed(path, owner, name=name) as folder:
        write_json(folder.login, to_plain(_at(there, answer["run_folder"])))
        write_provenance(folder, invocation.overrides, invocation.rest)
    hand_to_job(folder, owner, answer["job_id"])
    say(f"run folder: {folder.path}, on {there.login} {answer['run_folder']}")
    print(json.dumps(answer) if settings.options.output == "json" else answer["job_id"])
    return 0


def _at(there: Elsewhere, folder: str) -> Elsewhere:
    return Elsewhere(login=there.login, ssh=there.ssh, python=there.python, folder=folder)


def _parcel(invocation: Invocation, code: CodeFiles, parent: str, name: str) -> Parcel:
    """What the login node gets: the words of the command, with paths into the code as they are from its folder."""
    here = Path.cwd().resolve()
    inside = here.relative_to(code.root) if here.is_relative_to(code.root) else Path()
    words = [word for word in invocation.overrides if not word.lstrip("+~").startswith(OWN_KEYS)]
    moved = [_moved(word, code.root, code.root / inside) for word in words]
    return Parcel(
        version=__version__, parent=parent, name=name, inside=str(inside),
        words=(*moved, "launch.login=null"), args=tuple(invocation.rest),
    )  # fmt: skip


def _moved(word: str, root: Path, base: Path) -> str:
    key, equals, value = word.partition("=")
    if key not in ("script", "program", "plan") or not equals or not user_path(value).exists():
        return word
    path = user_path(value).resolve()
    if not path.is_relative_to(root):
        raise InputError(f"{word} is not in the code that is sent, {root}: work in the folder of the code")
    return f"{key}={os.path.relpath(path, base)}"


def _ssh(argv: Sequence[str], there: Elsewhere, *, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run ssh with its messages on this terminal; raises InputError or LauncherError where it reaches nothing."""
    try:
        done = subprocess.run(argv, input=data, stdout=subprocess.PIPE, env=env.environment())
    except OSError as error:
        raise _no_ssh(error) from error
    _check_reached(done.returncode, there)
    return done


def _no_ssh(error: OSError) -> InputError:
    return InputError(f"ssh cannot be run here ({error.strerror}): install OpenSSH's client")


def _check_reached(code: int, there: Elsewhere) -> None:
    if code == NO_CONNECTION:
        raise LauncherError(f"ssh does not reach {there.login}, or lost it before it answered, see above")


def followed(command: str, words: Sequence[str]) -> int:
    """Run a command where the run is that its first word names; returns its exit code. A report's page comes here."""
    folder, words = RunFolder(Path(resolved(words[0]))), words[1:]
    if command not in FOLLOWED:
        raise InputError(f"{folder.path} is on a login node: only {', '.join(FOLLOWED)} follow it from here")
    data = read_json(folder.login, remedy="name another run")
    there = from_plain(Elsewhere, data, folder.login.name)
    if command == "report":
        return _report(folder, there, words)
    goes_along = partial(process.die_with_parent, os.getpid(), signal.SIGTERM)  # ssh, which a kill would leave behind
    argv = there.argv("launcher.cli", [command, there.folder, *words])
    try:
        code = subprocess.run(argv, env=env.environment(), preexec_fn=goes_along).returncode
    except OSError as error:
        raise _no_ssh(error) from error
    _check_reached(code, there)
    return code


def _report(folder: RunFolder, there: Elsewhere, words: Sequence[str]) -> int:
    wanted = dict(word.partition("=")[::2] for word in words)
    if unknown := set(wanted) - {"file"}:
        raise InputError(f"{', '.join(sorted(unknown))}= is not an option for a run on a login node: file= is")
    done = _ssh(there.argv(MODULE, [there.folder]), there)
    if done.returncode:
        return done.returncode
    text, path = page(done.stdout, login=there.login), Path(wanted.get("file", folder.report))
    with written_as(path, "file="):
        write_text(path, text)
    print(path)
    return 0
