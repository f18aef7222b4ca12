"""`launcher export`: translate a plan for another tool, on standard output or as a folder to start from."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace

from launcher.commands.common import SEARCHING, checked_settings, plan_of
from launcher.commands.given_plan import read_given
from launcher.commands.invocation import Invocation
from launcher.commands.named import OVERRIDE, says_json
from launcher.console import waiting
from launcher.errors import InputError
from launcher.export.deepspeed import CONFIG as DEEPSPEED_CONFIG
from launcher.export.folder import write_folder
from launcher.export.planning import check, plan_for, with_overrides
from launcher.export.target import Export, Target
from launcher.export.targets import names, target
from launcher.files import user_path
from launcher.planner.record import Plan

OWN = ("to", "out", "output")
SAYS_FP8 = ("megatron",)


def run(invocation: Invocation) -> int:
    options, words = _split(invocation.overrides)
    as_json = says_json(options)
    if "to" not in options:
        raise InputError(f"choose the tool to export to: to={'|'.join(names())}")
    chosen = target(options["to"])
    plan = _plan(words, chosen)
    export = chosen.write(plan)
    _check_ds_config(plan, export)
    if plan.job.training.fp8 and chosen.name not in SAYS_FP8:
        export = replace(
            export, missing=(*export.missing, "products in fp8 (train.gemm_dtype): set them there by hand")
        )
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


def _check_ds_config(plan: Plan, export: Export) -> None:
    """Raise InputError if a DeepSpeed configuration of the user's is in no file of the export."""
    file = plan.options.train.ds_config
    if file is not None and DEEPSPEED_CONFIG not in export.files:
        raise InputError(
            f"train.ds_config={file} is in none of the files: DeepSpeed does not train in this export. "
            "Leave it out, or take to=deepspeed, or to=accelerate, hf or lightning with stack=deepspeed"
        )


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
        plan = plan_of(words)
        check(plan, chosen)
        return plan
    settings = checked_settings(with_overrides(words, chosen))
    if settings.options.plan is None:
        with waiting(SEARCHING):
            return plan_for(settings, chosen)
    plan = read_given(settings.options.plan, settings, words)
    check(plan, chosen)
    return plan
