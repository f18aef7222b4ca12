"""`launcher export`: translate a plan for another tool, on standard output or as a folder to start from."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launcher.agent.launch import read_launch
from launcher.commands.common import SEARCHING, checked_settings, plan_of
from launcher.commands.given_plan import read_given
from launcher.commands.invocation import Invocation
from launcher.commands.named import OVERRIDE, says_json
from launcher.commands.over_ssh import with_counts
from launcher.config.compose import load
from launcher.console import waiting
from launcher.errors import InputError
from launcher.export.folder import write_folder
from launcher.export.planning import express, plan_for, with_overrides
from launcher.export.target import Target
from launcher.export.targets import names, target
from launcher.files import user_path
from launcher.planner.record import Plan
from launcher.run.folder import RunFolder
from launcher.ssh.hosts import Host, check_number
from launcher.ssh.record import read_ssh_launch

OWN = ("to", "out", "output")


def run(invocation: Invocation) -> int:
    options, words = _split(invocation.overrides)
    as_json = says_json(options)
    if "to" not in options:
        raise InputError(f"choose the tool to export to: to={'|'.join(names())}")
    chosen = target(options["to"])
    plan = _plan(words, chosen)
    export = express(plan, chosen)
    for line in export.missing:
        print(f"to={chosen.name} cannot express {line}", file=sys.stderr)
    folder = user_path(options["out"]) if "out" in options else None
    if folder is not None:
        write_folder(plan, chosen, export, folder)
    if as_json:
        document = {"to": chosen.name, "main": export.main, "files": dict(export.files), "start": export.start}
        where = None if folder is None else str(folder)
        print(json.dumps({**document, "missing": list(export.missing), "folder": where}))
    elif folder is not None:
        print(folder)
    else:
        print(export.files[export.main], end="")
    return 0


def _split(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split the words into the command's own keys and the rest: a run, or overrides."""
    options: dict[str, str] = {}
    rest = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in OWN:
            options[key] = value
        else:
            rest.append(word)
    if "out" in options and not options["out"]:
        raise InputError("out= is empty: give a folder, for example out=exported")
    return options, rest


def _plan(words: Sequence[str], chosen: Target) -> Plan:
    """Return the plan of a run unchanged, or the best plan that the target can express."""
    if words and not OVERRIDE.match(words[0]):
        if len(words) > 1:
            raise InputError(
                f"a run's plan is exported as it is: leave {' '.join(words[1:])} out, or leave the run out"
            )
        return _on_hosts(plan_of(words), _hosts_of_run(Path(words[0])))
    settings = checked_settings(with_overrides(words, chosen))
    hosts = settings.options.ssh.all_hosts() if settings.options.ssh else ()
    if hosts:
        words = with_counts(words, hosts)
        settings = load(with_overrides(words, chosen))
    if settings.options.plan is None:
        with waiting(SEARCHING):
            return _on_hosts(plan_for(settings, chosen), hosts)
    return _on_hosts(read_given(settings.options.plan, settings, words), hosts)


def _hosts_of_run(path: Path) -> tuple[Host, ...]:
    """The hosts of a run over ssh, from its folder; none of another."""
    folder = RunFolder(path)
    if not folder.launch.is_file() or read_launch(folder.launch).ssh is None:
        return ()
    return read_ssh_launch(folder)[1].all_hosts()


def _on_hosts(plan: Plan, hosts: Sequence[Host]) -> Plan:
    """The plan on these hosts, where there are any; raises InputError unless there is one for each node."""
    if not hosts:
        return plan
    check_number(hosts, plan.placement.num_nodes)
    return replace(plan, hosts=tuple(host.name for host in hosts))
