"""`launcher run launch=ssh launch.hosts=[n1,n2:4]`: plan for these hosts, and start an agent on each through ssh."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launcher.agent.launch import Launch
from launcher.agent.settings import LaunchSettings
from launcher.commands.claim import may_claim
from launcher.commands.given_plan import named_folder
from launcher.commands.invocation import Invocation
from launcher.commands.prepare import launch_settings, plan_run, say_plan, say_variables, write_run
from launcher.commands.unused_keys import PlannedStart, check_used
from launcher.config.compose import load
from launcher.config.settings import NIC_GBPS, Settings, network_note
from launcher.console import notify, say
from launcher.errors import InputError
from launcher.faststart.overlapped_import import Order
from launcher.planner import Plan
from launcher.planner.record import Program
from launcher.run.folder import RunFolder, default_name
from launcher.run.owner import Owner
from launcher.schema import to_plain
from launcher.ssh.hosts import Host, check_number, slots_of
from launcher.ssh.request import ssh_argv
from launcher.ssh.settings import SshSettings
from launcher.ssh.start import left_behind
from launcher.ssh.torchrun_lines import torchrun_lines
from launcher.ssh.watching import as_text

NODES, RANKS = ("cluster.num_nodes=", "launch.nnodes="), ("cluster.node.num_gpus=", "launch.nproc_per_node=")


def order(invocation: Invocation, owner: Owner, settings: Settings) -> Order | None:
    """Plan a job for the hosts and write its run folder for `owner`; None for a dry run.

    Raises InputError, and has then written nothing.
    """
    ssh = _ssh_settings(settings)
    hosts = ssh.all_hosts()
    _check_job(settings, invocation.overrides, hosts)
    words = with_counts([*invocation.overrides, *_network(settings, hosts)], hosts)
    settings = load(words)
    path = named_folder(settings)
    if path is not None:
        may_claim(path, owner)
    run = plan_run(settings, words, invocation.rest)
    launch = Launch(settings=launch_settings(settings, words, path), work_dir=Path.cwd(), ssh=to_plain(ssh))
    run = replace(run, plan=_on_hosts(run.plan, hosts, launch.settings))
    check_used(PlannedStart(plan=run.plan, launch=launch.settings), invocation.overrides)
    say_plan(run.plan)
    if line := left_behind(ssh):
        notify(line)
    if launch.settings.place == "torchrun":
        print(torchrun_lines(run.plan, _own(run.plan), launch.settings, hosts, run_id=default_name(run.name)))
        return None
    if settings.options.dry_run:
        say_variables(run.plan)
        for host in hosts:
            say(as_text(ssh_argv(host, ssh, python=sys.executable)))
        say("the plan, the variables and the secret of the start go through ssh's standard input")
        say("dry run: nothing was started")
        return None
    return write_run(run, launch, invocation, owner)


def _own(plan: Plan) -> Program:
    """The user's program; raises InputError for a recipe, which torchrun alone cannot start."""
    if plan.options.program is None:
        raise InputError(
            "launch=torchrun prints how torchrun starts your own program: give script=, module= or program="
        )
    return plan.options.program


def _ssh_settings(settings: Settings) -> SshSettings:
    if settings.options.ssh is None:
        raise InputError(f"launch.place={settings.options.launch.place} has no hosts: choose launch=ssh")
    return settings.options.ssh


def _network(settings: Settings, hosts: Sequence[Host]) -> list[str]:
    """A network between the hosts, assumed where the cluster file is of one machine and has none."""
    if len(hosts) == 1 or settings.job.cluster.node.num_nics:
        return []
    notify(network_note(settings.job.cluster.name))
    return ["cluster.node.num_nics=1", f"cluster.node.nic_gbps={NIC_GBPS}", "cluster.fabric=ethernet"]


def with_counts(overrides: Sequence[str], hosts: Sequence[Host]) -> list[str]:
    """The overrides, with the hosts' numbers of nodes and ranks where they, or a plan that is there, say none."""
    keys = [word.lstrip("+~") for word in overrides]
    folders = [word.partition("=")[2] for word in overrides if word.startswith("run_dir=")]
    if any(RunFolder(Path(folder)).plan.is_file() for folder in folders) or any(k.startswith("plan=") for k in keys):
        return list(overrides)
    slots = slots_of(hosts)
    nodes = [] if any(k.startswith(NODES) for k in keys) else [f"launch.nnodes={len(hosts)}"]
    if slots is None or any(k.startswith(RANKS) for k in keys):
        return [*overrides, *nodes]
    uneven = [f"layout.dp={sum(slots)}"] if len({*slots}) > 1 and not any(k.startswith("layout.") for k in keys) else []
    return [*overrides, *nodes, f"launch.nproc_per_node={max(slots)}", *uneven]


def _on_hosts(plan: Plan, hosts: Sequence[Host], launch: LaunchSettings) -> Plan:
    """The plan with the hosts' numbers of ranks; raises InputError where they do not fit each other."""
    slots = slots_of(hosts)
    if slots is not None and len({*slots}) > 1 and not plan.options.node_ranks:
        _check_uneven(plan, slots, launch)
        plan = replace(plan, options=replace(plan.options, node_ranks=slots))
    placement = plan.placement
    check_number(hosts, placement.num_nodes)
    each = tuple(placement.ranks_on(node) for node in range(len(hosts)))
    if slots is not None and slots != each:
        raise InputError(
            f"the plan puts {_numbers(each)} ranks on each host, and they are named with {_numbers(slots)} slots: say "
            "the same"
        )
    return plan


def _check_uneven(plan: Plan, slots: Sequence[int], launch: LaunchSettings) -> None:
    """Raise InputError for a job that needs as many ranks on every node."""
    found, all_equal = f"the hosts have {_numbers(slots)} slots", "give all as many"
    if plan.layout.dp != sum(slots):
        raise InputError(
            f"{found}, on which {plan.layout.brief()} has no place: nodes with different numbers of ranks run plain "
            f"data parallelism (layout.dp={sum(slots)}); for anything else {all_equal}"
        )
    if launch.shrink_to:
        raise InputError(f"{found}, and launch.shrink_to needs equal nodes: leave it out, or {all_equal}")


def _check_job(settings: Settings, words: Sequence[str], hosts: Sequence[Host]) -> None:
    """Raise InputError for a job that cannot be planned for hosts with different numbers of ranks."""
    slots = slots_of(hosts) or (1,)
    if len({*slots}) == 1:
        return
    found, all_equal = f"the hosts have {_numbers(slots)} slots", "give all as many"
    if not settings.options.own_program and settings.options.plan is None:
        raise InputError(f"{found}, and recipes are planned for equal nodes: {all_equal}, or start your own program")
    if any(word.startswith("model=") for word in words):
        raise InputError(f"{found}, and an estimate is of equal nodes: leave model= out, or {all_equal}")


def _numbers(each: Sequence[int]) -> str:
    return ", ".join(map(str, each)) if len({*each}) > 1 else str(each[0])
