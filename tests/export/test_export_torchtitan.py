"""torchtitan's keys are documented, count the plan's sequences, and its own dataclasses read the flags back.

torchtitan needs packages with CUDA: the last is for `.ci/stacks`, which sets TORCHTITAN to its unpacked wheel.
"""

from __future__ import annotations

import ast
import csv
import importlib.util
import os
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from export_plans import PLANS, plan_of

from launcher.export import torchtitan

OPTIONS = Path(__file__).parent / "options" / "torchtitan.csv"
CHECKOUT = os.environ.get("TORCHTITAN")
COMPILED = (
    "zero3 with tp|layout.sequence_parallel=true|stack.compile=true|stack.tp_overlap=async|stack.compiles_loss=false"
)
SAID = [name for name in PLANS if not list(torchtitan.cannot((plan := plan_of(name)).job, plan.layout))]


def test_plans_of_every_kind_are_said() -> None:
    assert {"plain dp", "zero2", "zero3", "zero3 with tp", "uneven ends", "context"} <= set(SAID)


@pytest.mark.parametrize("name", SAID)
def test_every_key_is_one_that_torchtitan_documents(name: str) -> None:
    with OPTIONS.open() as file:
        documented = {row["option"] for row in csv.DictReader(file)}
    assert {key for key, _ in torchtitan.settings(plan_of(name))} <= documented


@pytest.mark.parametrize("name", SAID)
def test_sequences_of_micro_batches_and_steps_are_the_plans(name: str) -> None:
    plan = plan_of(name)
    found, layout = dict(torchtitan.settings(plan)), plan.layout
    batch, passes = plan.job.training.global_batch, layout.num_micro_batches(plan.job.training.global_batch)
    assert (found["training.global_batch_size"], found["training.seq_len"]) == (batch, plan.job.model.seq_len)
    micro_batch = found.get("parallelism.pipeline_parallel_microbatch_size", found["training.local_batch_size"])
    assert micro_batch == layout.micro_batch
    steps_of_accumulation = batch // layout.dp // found["training.local_batch_size"]
    assert steps_of_accumulation * found["training.local_batch_size"] // micro_batch == passes
    assert layout.pp == 1 or steps_of_accumulation == 1  # one pipeline a step, not several short ones


def test_stages_that_no_flag_says_are_in_the_configuration_function() -> None:
    plan = plan_of("uneven ends")
    text = torchtitan.write(plan).files["plan_config.py"]
    (assigned,) = [
        ast.literal_eval(node.value)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).endswith("module_fqns_per_model_part")
    ]
    assert [sum(module.startswith("layers.") for module in stage) for stage in assigned] == [7, 9, 9, 7]
    assert (assigned[0][0], assigned[-1][-2:]) == ("tok_embeddings", ["norm", "lm_head"])
    assert any("[7, 9, 9, 7]" in line for line in torchtitan.write(plan).missing)


def test_a_model_that_it_does_not_have_is_reported() -> None:
    assert any("gpt3_1b3" in line for line in torchtitan.write(plan_of("plain dp")).missing)
    assert not any("llama3_8b" in line for line in torchtitan.write(plan_of("context")).missing)


@pytest.mark.skipif(CHECKOUT is None, reason="set TORCHTITAN to a checkout of torchtitan")
@pytest.mark.parametrize("name", [*SAID, COMPILED])
def test_torchtitans_own_dataclasses_read_the_flags(name: str) -> None:
    tyro = pytest.importorskip("tyro")
    configs = configs_of(Path(str(CHECKOUT)))

    @dataclass
    class Config:
        training: Any = field(default_factory=configs.TrainingConfig)
        parallelism: Any = field(default_factory=configs.ParallelismConfig)
        compile: Any = field(default_factory=configs.CompileConfig)

    Config.__annotations__.update(
        training=configs.TrainingConfig, parallelism=configs.ParallelismConfig, compile=configs.CompileConfig
    )
    plan = plan_of(*name.split("|"))
    read = tyro.cli(Config, args=own_flags(torchtitan.flags(plan)), default=Config())
    for key, value in torchtitan.settings(plan):
        section, _, option = key.partition(".")
        if section in ("training", "parallelism", "compile"):
            assert getattr(getattr(read, section), option) == value, key


def own_flags(words: list[str]) -> list[str]:
    """The flags of the sections training, parallelism and compile, with their values."""
    found: list[str] = []
    keep = False
    for word in words:
        keep = word.startswith(("--training", "--parallelism", "--compile")) if word.startswith("--") else keep
        found += [word] if keep and not word.startswith("activation") else []
    return found


def configs_of(checkout: Path) -> Any:
    """torchtitan/config/configs.py alone: the package imports nightly builds."""
    for name in ("torchtitan", "torchtitan.config"):
        package = types.ModuleType(name)
        package.__path__ = []
        sys.modules.setdefault(name, package)
    file = checkout / "torchtitan" / "config" / "configs.py"
    spec = importlib.util.spec_from_file_location("torchtitan.config.configs", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
