"""The words that launcher/export/README.md names are those that the exports write."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from export_plans import PLANS, plan_of

from launcher.config.compose import load
from launcher.config.overrides import every_key
from launcher.export.planning import express
from launcher.export.targets import names, target
from launcher.layout.resolve import plain_layout
from launcher.planner.record import Plan

PAGE = (Path(__file__).resolve().parents[2] / "launcher" / "export" / "README.md").read_text()
TOOLS = {
    "Megatron-LM": "megatron",
    "NeMo (Megatron Bridge)": "nemo",
    "torchtitan": "torchtitan",
    "DeepSpeed": "deepspeed",
}


def table() -> tuple[list[str], list[list[str]]]:
    text = PAGE.partition("The words of a layout.")[2]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return rows[0], rows[1:]


def written(name: str) -> str:
    """All that a tool is given for every plan that it can say."""
    chosen = target(name)
    staged = plan_of("virtual stages", "layout.recompute=none", "layout.zero_stage=0")  # of torchtitan's kind
    plans = [plan for plan in (*map(plan_of, PLANS), staged) if not list(chosen.cannot(plan.job, plan.layout))]
    return "\n".join(text for plan in plans for text in chosen.write(plan).files.values())


@pytest.mark.parametrize("tool", TOOLS)
def test_every_word_of_the_table_is_written_for_some_plan(tool: str) -> None:
    head, rows = table()
    text = written(TOOLS[tool])
    words = [word for row in rows for word in re.findall(r"`([^`]+)`", row[head.index(tool)])]
    assert len(words) >= 5
    assert [word for word in words if not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text)] == []


def test_every_key_of_the_table_is_one_of_ours() -> None:
    keys = [re.findall(r"`([^`]+)`", row[0])[0].partition("=")[0] for row in table()[1]]
    known = every_key()
    assert len(keys) >= 5
    assert [key for key in keys if key not in known] == []


def test_every_target_is_on_the_page() -> None:
    assert [name for name in names() if f"`{name}`" not in PAGE] == []


# Over data-parallel ranks, over one of them, and on a single GPU.
OFFLOADED = {
    "megatron_lm": "cluster=dgx_a100_40g model=llama2_13b layout.tp=8 layout.pp=1 layout.zero_stage=1",
    "deepspeed": "cluster=dgx_a100_40g model=llama2_7b layout.tp=1 layout.pp=1 layout.zero_stage=1",
    "deepspeed stack.year=2024": "cluster=fly_a100_80gb model=gpt3_1b3 layout.zero_stage=1",
    "fsdp": "cluster=dgx_a100_40g model=llama2_7b layout.tp=1 layout.pp=1 layout.zero_stage=3",
}
SAYS = re.compile(r"--optimizer-cpu-offload|\"offload_optimizer\": \{\s*\"device\": \"cpu\"")


@pytest.mark.parametrize("name", [name for name in names() if target(name).profiles])
def test_an_optimizer_on_the_host_is_written_or_named(name: str) -> None:
    tool, said = target(name), []
    for stack, words in OFFLOADED.items():
        keys = [*words.split(), *f"stack={stack} train.global_batch=64 layout.offload_optimizer=true".split()]
        settings = load(keys)
        plan = Plan(settings.job, plain_layout(settings.job, settings.request), {}, (), settings.run_options)
        if list(tool.cannot(plan.job, plan.layout)):
            continue
        export = express(plan, tool)
        assert tool.offloads(plan.job) == any(map(SAYS.search, export.files.values())) or "recipe" in str(
            export.missing
        )
        assert tool.offloads(plan.job) or "layout.offload_optimizer" in str(export.missing)
        said.append(stack)
    assert said
