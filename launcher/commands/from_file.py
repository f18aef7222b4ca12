"""`launcher plan from=FILE`: estimate what another tool's file runs, compare it with the best plan for that tool."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from launcher.commands.common import checked_settings
from launcher.config.settings import OTHER_NAMES, Settings
from launcher.console import show
from launcher.cost.model import CostModel
from launcher.errors import InputError
from launcher.export.planning import express, plan_for
from launcher.export.readers import read_from
from launcher.export.reading import Reading
from launcher.export.rules import effective
from launcher.export.target import Export, Target
from launcher.export.targets import target
from launcher.layout import Layout
from launcher.layout.legality import problems
from launcher.layout.resolve import plain_layout
from launcher.planner import Plan
from launcher.planner.document import estimate_data, layout_data
from launcher.planner.preference import handicap
from launcher.planner.search import room_bytes
from launcher.units import format_bytes, format_seconds

FROM = "from="
SEQ_LEN = "model.seq_len"  # of a model's keys the one that training decides
APART = ("axis_order", "layer_split", "tp_across_domains")  # of a layout's keys: compared in their own way, or not
COMPARED = tuple(field.name for field in fields(Layout) if field.name not in APART)


def run(overrides: Sequence[str]) -> int:
    file = Path([word for word in overrides if word.startswith(FROM)][-1].removeprefix(FROM)).expanduser()
    words = [word for word in overrides if not word.startswith(FROM)]
    reading = read_from(file)
    tool = target(reading.target)
    settings = checked_settings(_with(reading, words))
    yours = _estimated(settings, file)
    best = plan_for(checked_settings(_free(reading, words, yours)), tool)
    flags, verdict = _flags(tool, yours, best), _verdict(yours, best)
    if settings.options.output == "json":
        print(json.dumps(_document(file, reading, yours, best, flags, verdict)))
        return 0
    _show(file, reading, yours, best, flags, verdict)
    return 0


def _with(reading: Reading, words: Sequence[str]) -> list[str]:
    """Combine what was read with the user's words, which win; add the global batch if the file counts micro-batches."""
    said = {word.lstrip("+~").partition("=")[0] for word in words}
    said |= {OTHER_NAMES[key] for key in said & set(OTHER_NAMES)}
    named = {"model", "model.name"} & said
    keys = {key: value for key, value in reading.keys.items() if key not in said}
    if named:  # a model that the user names is not the file's, whose sequences are as long as it says
        keys = {
            key: v for key, v in keys.items() if key == SEQ_LEN or (key != "model" and not key.startswith("model."))
        }
    if {"stack", "stack.name"} & said:  # and other software has its own habits
        keys = {key: value for key, value in keys.items() if not key.startswith("stack.")}
    _all_said(reading, {*said, *(("model.",) if named else ())})
    overrides = [*Reading(reading.target, keys).overrides(), *words]
    if reading.accumulation and "train.global_batch" not in {*keys, *said}:
        settings = checked_settings([*overrides, "train.global_batch=1"])
        layout = plain_layout(settings.job, settings.request)
        overrides.append(f"train.global_batch={layout.micro_batch * layout.dp * reading.accumulation}")
    return overrides


def _all_said(reading: Reading, said: set[str]) -> None:
    """Raise InputError where the file leaves a key to the place where it runs, or says nothing of the model or of the
    batch, and the user does not give it: the defaults are no job of theirs.
    """
    open_keys = {
        key: words for key, words in reading.open.items()
        if key not in said and not ("model." in said and key.startswith("model."))
    }  # fmt: skip
    found = [f"the file leaves {words} to where it runs: give {key}=" for key, words in open_keys.items()]
    known = {*said, *reading.keys, *reading.open}
    if not {"model", "model.", "model.hidden"} & known:
        found.append(
            "the file does not say which model it trains: give model=NAME, or model=hf:FOLDER with its config.json"
        )
    if "train.global_batch" not in known and not reading.accumulation:
        found.append("the file does not say how many sequences a step has: give train.global_batch=")
    if found:
        raise InputError(found)


def _free(reading: Reading, words: Sequence[str], yours: Plan) -> list[str]:
    """Return the same job with an open layout, except for what the user pins; where the host's memory is not known the
    search would not offload, and what is read stays.
    """
    stays = () if yours.job.cluster.node.host_memory_bytes else OTHER_NAMES.values()
    open_keys = {key: v for key, v in reading.keys.items() if not key.startswith("layout.") or key in stays}
    job = Reading(reading.target, open_keys)
    job.open = {key: words for key, words in reading.open.items() if not key.startswith("layout.")}
    return _with(job, [*words, f"train.global_batch={yours.job.training.global_batch}"])


def _estimated(settings: Settings, file: Path) -> Plan:
    """Make a plan of the layout that was read; raises InputError if it breaks a rule here."""
    layout = plain_layout(settings.job, settings.request)
    if found := problems(settings.job, layout):
        raise InputError([f"from={file}: as read, with the keys on the command line, the layout is not legal", *found])
    estimate = CostModel(settings.job).estimate(layout)
    return Plan(settings.job, layout, estimate_data(estimate), (), settings.run_options)


def _flags(tool: Target, yours: Plan, best: Plan) -> list[str]:
    """Return the lines of the tool's main file that differ; empty if the tool cannot express what was read."""
    try:
        before, after = (_main(express(plan, tool)) for plan in (yours, best))
    except InputError:
        return []
    lines = list(difflib.unified_diff(before, after, lineterm="", n=0))[2:]  # the first two name the sides
    return [line for line in lines if not line.startswith("@@")]


def _main(export: Export) -> list[str]:
    return [line.removesuffix(" \\") for line in export.files[export.main].splitlines()]


def _difference(yours: Layout, best: Layout) -> list[str]:
    """Return the keys that differ, with both values."""
    pairs = [(key, getattr(yours, key), getattr(best, key)) for key in COMPARED]
    if len(yours.layer_split) == len(best.layer_split):  # of other stages it follows
        pairs.append(("layer_split", list(yours.layer_split), list(best.layer_split)))
    orders = ["-".join(effective(layout, layout.axis_order)) for layout in (yours, best)]
    if sorted(orders[0]) == sorted(orders[1]):
        pairs.append(("axis_order", orders[0], orders[1]))
    return [f"{key} {_plain(old)} → {_plain(new)}" for key, old, new in pairs if old != new]


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _verdict(yours: Plan, best: Plan) -> str:
    """Say which is faster; where yours is, and the search leaves it out for its memory, say that."""
    old, new = yours.estimate["step_time_s"], best.estimate["step_time_s"]
    change = old / new - 1
    if not yours.estimate["fits"]:
        return "yours does not fit in memory by this estimate"
    if abs(change) < 0.005:
        return "yours is as fast"
    if change > 0:
        return f"the best is {change:.1%} faster"
    faster = f"yours is {-change:.1%} faster"
    asked, model = best.options.asked, CostModel(yours.job)
    room, most = (room_bytes(asked, model, risk=risk) for risk in (asked.risk, 1.0))
    used = yours.estimate["memory_bytes_per_gpu"]
    if used > most:
        return f"{faster}, but needs more memory than layout.max_memory_gib and layout.memory_margin allow"
    if used > room >= best.estimate["memory_bytes_per_gpu"]:
        chance = yours.estimate["fit_probability"]
        return (
            f"{faster}, but fits with a probability of {chance:.0%} only, and layout.risk={asked.risk:g} asks for "
            f"{1 - asked.risk:.0%}"
        )
    if -change < _handicap(yours) - _handicap(best):
        return f"{faster} by the estimate alone, which is too little for its little room or many moving parts"
    return f"{faster} than the best that the tool can express"


def _handicap(plan: Plan) -> float:
    memory, usable = plan.estimate["memory_bytes_per_gpu"], plan.estimate["usable_memory_bytes"]
    return handicap(plan.job, plan.layout, memory_bytes=memory, usable_bytes=usable)


def _document(file: Path, reading: Reading, yours: Plan, best: Plan, flags: list[str], verdict: str) -> dict[str, Any]:
    plans = {
        name: {"layout": layout_data(plan.layout), **plan.estimate} for name, plan in (("yours", yours), ("best", best))
    }
    return {
        "from": str(file),
        "tool": reading.target,
        "read": reading.keys,
        "unread": reading.unread,
        **plans,
        "difference": _difference(yours.layout, best.layout),
        "verdict": verdict,
        "flags": flags,
    }


def _show(file: Path, reading: Reading, yours: Plan, best: Plan, flags: list[str], verdict: str) -> None:
    lines = [f"{file} was read as a file of {target(reading.target).tool}: {' '.join(reading.overrides())}"]
    lines += [f"not read: {line}" for line in reading.unread]
    lines += ["", f"yours  {_summary(yours)}", f"best   {_summary(best)}", ""]
    changes = ", ".join(_difference(yours.layout, best.layout))
    lines.append(f"{verdict}: {changes}" if changes else "yours is the best that was found")
    if changes and flags:
        lines += ["", f"in {target(reading.target).tool}'s words:", *flags]
    show(*lines)


def _summary(plan: Plan) -> str:
    estimate = plan.estimate
    step, memory = format_seconds(estimate["step_time_s"]), format_bytes(estimate["memory_bytes_per_gpu"])
    fits = "" if estimate["fits"] else ", does not fit"
    speed = f"{estimate['tokens_per_s_per_gpu']:,.0f} tok/s a GPU"
    return f"{plan.layout.brief()}: {step} a step, {memory} a GPU{fits}, {speed}"
