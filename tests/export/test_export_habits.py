"""Every key of `stack` and every target: written in the tool's own option and read back, or listed with the reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from export_plans import plan_of

from launcher.errors import InputError
from launcher.export.planning import express
from launcher.export.readers import read_from
from launcher.export.target import Export
from launcher.export.targets import TARGETS, target
from launcher.planner import Plan
from launcher.planner.habits import KEYS, Entry, Option, assumed, setup_of
from launcher.stacks import stack_of
from launcher.stacks.stack import DP_MESSAGES, SUM_DTYPES, TP_OVERLAPS

CHOICES = {"tp_overlap": TP_OVERLAPS, "tp_reduce_dtype": SUM_DTYPES, "grad_reduce_dtype": SUM_DTYPES,
           "dp_messages": DP_MESSAGES, "flash_version": (1, 2, 3), "gathers_per_layer": (1, 2),
           "pipeline_groups": (0, 1), "pipeline_fragmentation": (0.0, 0.1)}  # fmt: skip
FUSED = ("fused_norm", "fused_rotary", "fused_activation", "fused_loss")
SHARDED = ("zero3 with tp", "layout.sequence_parallel=true")
# Plans of each tool: with and without ZeRO-3, a pipeline and tensor parallelism; gated, and with biases.
BASES: dict[str, list[tuple[str, ...]]] = {
    "megatron": [(*base, "stack=megatron_lm") for base in (SHARDED, ("virtual stages",), ("zero2",))],
    "nemo": [(*base, "stack=megatron_lm") for base in (SHARDED, ("virtual stages",), ("zero2",))],
    "torchtitan": [(*SHARDED, "stack=torchtitan"), (*SHARDED, "stack=torchtitan", "stack.compile=true")],
    "deepspeed": [("zero1",), ("zero3", "stack=deepspeed"), ("plain dp", "stack=deepspeed", "train.dtype=fp32")],
    "accelerate": [("zero1",), ("zero3", "stack=fsdp")],
    "hf": [("zero1",), ("zero3", "stack=fsdp")],
    "lightning": [("zero1",), ("zero3", "stack=fsdp")],
}  # fmt: skip
FILES = {
    "megatron": "start.sh",
    "torchtitan": "start.sh",
    "deepspeed": "ds_config.json",
    "accelerate": "accelerate.yaml",
    "hf": "start.sh",
    "nemo": "start.sh",
}
CASES = [(tool, base) for tool in TARGETS for base in BASES.get(tool, [("zero3", "stack=fsdp")])]
IDS = [f"{tool}: {' '.join(base)}" for tool, base in CASES]


def base_of(base: tuple[str, ...]) -> Plan:
    plan = plan_of(*base)
    return replace(plan, hosts=("a", "b", "c", "d")[: plan.placement.num_nodes])


def with_habits(plan: Plan, **habits: Any) -> Plan:
    """The same plan of the same software, with some habits set by hand."""
    compiled = {"compile": True} if plan.job.stack.compile else {}
    return replace(plan, job=replace(plan.job, stack=stack_of(plan.job.stack.name, **compiled | habits)))


def variants(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """The plan with each habit set to each value that has another effect."""
    before = assumed(plan.job, plan.layout)
    for key in KEYS:
        for value in CHOICES.get(key, (True, False)):
            kept = {
                fused: before[fused] for fused in FUSED if key == "compile"
            }  # it says these too, unless they are set
            other = with_habits(plan, **kept | {key: value})
            if assumed(other.job, other.layout)[key] != before[key]:
                yield key, other


def entries(tool: str, plan: Plan) -> dict[str, Entry]:
    found = target(tool).habits(setup_of(plan.job, plan.layout, deepspeed=plan.job.stack.name == "deepspeed"))
    assert set(found) == set(KEYS)
    return dict(found)


def read_back(tool: str, plan: Plan, export: Export, folder: Path) -> dict[str, Any]:
    """What a plan of the file that was written would assume."""
    files = dict(export.files)
    if tool == "torchtitan":  # the flags, as a user has them on the command line
        files["start.sh"] += files["torchtitan_flags.txt"]
    for name, text in files.items():
        (folder / name).write_text(text)
    keys = read_from(folder / FILES[tool]).keys
    habits = {key.removeprefix("stack."): value for key, value in keys.items() if key.startswith("stack.")}
    return assumed(replace(plan.job, stack=stack_of(keys["stack"], **habits)), plan.layout)


def wrong_habits(tool: str, plan: Plan, found: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Those of `keys` that the tool's reader finds in the tool's words, with another effect than they were written."""
    wanted, table = assumed(plan.job, plan.layout), entries(tool, plan)
    readable = {
        key
        for key in keys
        if isinstance(entry := table[key], Option) and not entry.unread and wanted[key] in entry.settings
    }
    return {key: found[key] for key in readable if found[key] != wanted[key]}


@pytest.mark.parametrize(("tool", "base"), CASES, ids=IDS)
def test_a_changed_habit_is_written_and_read_back_or_has_a_reason(
    tool: str, base: tuple[str, ...], tmp_path: Path
) -> None:
    plan, chosen = base_of(base), target(tool)
    before = express(plan, chosen)
    if tool in FILES:
        assert wrong_habits(tool, plan, read_back(tool, plan, before, tmp_path), KEYS) == {}
    for key, other in variants(plan):
        entry, value = entries(tool, other)[key], assumed(other.job, other.layout)[key]
        try:
            export = express(other, chosen)
        except InputError as error:
            assert "stack.tp_overlap" in str(error)
            continue
        texts = [text for name, text in export.files.items() if text != before.files[name]]
        if isinstance(entry, str) or (isinstance(entry, Option) and value not in entry.settings):
            said = any("which the plan assumes" in line and f"stack.{key}=" in line for line in export.missing)
            assert said or not chosen.profiles, (key, value)
        if isinstance(entry, str):
            assert len(entry) > 8 and not texts, (key, value)
        elif isinstance(entry, Option) and value in entry.settings:
            options = [name.rpartition(".")[2] for name in entry.settings[value]]
            own = entry.settings.get(assumed(plan.job, plan.layout)[key], {})
            assert bool(texts) == (entry.settings[value] != own), (key, value)
            assert all(any(option in text for text in texts) for option in options), (key, value)
        if tool in FILES:
            assert wrong_habits(tool, other, read_back(tool, other, export, tmp_path), (key,)) == {}


def test_every_key_that_a_tool_has_an_option_for_is_tried() -> None:
    tried: dict[str, set[str]] = {}
    options: dict[str, set[str]] = {}
    for tool, base in CASES:
        plan = base_of(base)
        tried.setdefault(tool, set()).update(key for key, _ in variants(plan))
        found = entries(tool, plan).items()
        options.setdefault(tool, set()).update(key for key, entry in found if isinstance(entry, Option))
    assert {tool: options[tool] - tried[tool] for tool in options if options[tool] - tried[tool]} == {}
