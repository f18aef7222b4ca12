"""Megatron-LM's options: each is documented, each plan is said or refused, and its own parser reads the plan back.

The parser is in the wheel of megatron-core 0.19.2, whose package needs CUDA: `.ci/stacks` unpacks it for MEGATRON_LM.
"""

from __future__ import annotations

import csv
import json
import os
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from export_plans import PLANS, plan_of

from launcher.export import megatron

HERE = Path(__file__).parent
CHECKOUT = os.environ.get("MEGATRON_LM")
REFUSED = {"data first": "numbers ranks by tp-cp-dp-pp or tp-cp-pp-dp", "zero bubble": "1f1b"}
SAID = [name for name in PLANS if name not in REFUSED]


def words(name: str, *more: str) -> list[str]:
    text = megatron.write(plan_of(name, *more)).files[megatron.FLAGS]
    return shlex.split(text.replace("\\\n", " "))


def values(name: str, *more: str) -> dict[str, str]:
    """Flags with their values; "" where they have none."""
    found: dict[str, str] = {}
    for word in words(name, *more):
        if word.startswith("--"):
            found[word] = ""
        else:
            found[list(found)[-1]] += word
    return found


@pytest.mark.parametrize("name", SAID)
def test_every_option_is_one_that_megatron_documents(name: str) -> None:
    with (HERE / "options" / "megatron.csv").open() as file:
        documented = {row["option"]: row["values"] for row in csv.DictReader(file)}
    for flag, value in values(name).items():
        assert flag in documented
        assert bool(value) == (documented[flag] != "none"), flag


@pytest.mark.parametrize("name", REFUSED)
def test_what_megatron_cannot_say_is_refused_with_what_to_do(name: str) -> None:
    plan = plan_of(name)
    (problem,) = megatron.cannot(plan.job, plan.layout)
    assert REFUSED[name] in problem and "set layout." in problem


def test_stages_that_differ_at_the_ends_are_said_by_the_ends() -> None:
    found = values("uneven ends")
    assert found["--decoder-first-pipeline-num-layers"] == found["--decoder-last-pipeline-num-layers"] == "7"


def test_any_other_stages_are_said_layer_by_layer() -> None:
    assert values("uneven")["--pipeline-model-parallel-layout"] == "Ettttttt|tttttttt|tttttttttt|tttttttL"


def test_a_part_of_the_layers_is_recomputed_by_block() -> None:
    found = values("part")
    assert (found["--recompute-granularity"], found["--recompute-method"]) == ("full", "block")
    assert found["--recompute-num-layers"] == "8"
    plan = plan_of("part", "layout.recompute_fraction=0.3")
    assert "whole number of layers" in next(megatron.cannot(plan.job, plan.layout))


def test_a_rank_order_with_the_pipeline_before_data_has_its_flag() -> None:
    assert "--use-tp-pp-dp-mapping" in values("pipeline first")
    assert "--use-tp-pp-dp-mapping" not in values("virtual stages")


def test_shape_numbers_and_length_of_the_training_are_said() -> None:
    found = values("context", "train.dropout=0.1", "tokens=1e9", "train.lr=1e-4")
    assert found["--rotary-base"] == "500000"
    assert (found["--attention-dropout"], found["--hidden-dropout"]) == ("0.1", "0.1")
    assert (found["--vocab-size"], found["--padded-vocab-size"]) == ("128256", "128256")
    assert found["--train-iters"] == str(round(1e9 / (32 * 8192)))
    assert (found["--lr"], found["--lr-decay-style"]) == ("0.0001", "cosine")


def test_a_vocabulary_that_tp_does_not_divide_is_padded_and_that_is_reported() -> None:
    plan = plan_of("uneven ends", "model.vocab=50257")
    assert values("uneven ends", "model.vocab=50257")["--padded-vocab-size"] == "50432"
    assert any("50,257" in line and "50,432" in line for line in megatron.write(plan).missing)


@pytest.mark.slow
@pytest.mark.skipif(CHECKOUT is None, reason="set MEGATRON_LM to a checkout of Megatron-LM, or run .ci/stacks")
@pytest.mark.parametrize("name", SAID)
def test_megatrons_own_parser_reads_the_plan_back(name: str) -> None:
    plan, read = plan_of(name), megatron_reads()[name]
    assert read["stages"] == list(plan.layout.layer_split)
    for axis in ("tp", "cp", "dp", "pp"):
        assert sorted(map(tuple, read["groups"][axis])) == sorted(plan.grid.groups(axis))
    assert sorted(map(tuple, read["groups"]["ep"])) == (sorted(plan.grid.groups("ep")) if plan.layout.ep > 1 else [])
    arguments = read["arguments"]
    assert (arguments["micro_batch_size"], arguments["global_batch_size"]) == (
        plan.layout.micro_batch, plan.job.training.global_batch)  # fmt: skip
    assert arguments["recompute_granularity"] == (None if plan.layout.recompute == "none" else plan.layout.recompute)


@pytest.mark.slow
@pytest.mark.skipif(CHECKOUT is None, reason="set MEGATRON_LM to a checkout of Megatron-LM, or run .ci/stacks")
def test_megatrons_own_parser_reads_the_habits_that_a_plan_assumes() -> None:
    usual, other = (megatron_reads()[" ".join(("zero3 with tp", *more))]["arguments"] for more in (USUAL, OTHER))
    for name, by_itself in HABITS.items():
        assert (usual[name], other[name]) == (by_itself, not by_itself), name


USUAL = ("stack=megatron_lm", "layout.zero_stage=1", "layout.sequence_parallel=true")
OTHER = (*USUAL, "stack.fused_rotary=false", "stack.fused_activation=false", "stack.fused_loss=true",
         "stack.fused_accumulation=false", "stack.tp_overlap=async", "stack.grad_reduce_dtype=train",
         "stack.overlap_grad_reduce=false")  # fmt: skip
# Megatron-LM's names of them, and what a plan for Megatron-LM assumes by itself.
HABITS = {"apply_rope_fusion": True, "bias_swiglu_fusion": True, "cross_entropy_loss_fusion": False,
          "gradient_accumulation_fusion": True, "tp_comm_overlap": False, "accumulate_allreduce_grads_in_fp32": True,
          "overlap_grad_reduce": True, "overlap_param_gather": True}  # fmt: skip


@cache
def megatron_reads() -> dict[str, Any]:
    """Every plan as Megatron-LM reads it, by one process: its import takes seven seconds."""
    plans = [(name,) for name in SAID] + [("zero3 with tp", *USUAL), ("zero3 with tp", *OTHER)]
    asked = [
        {
            "world_size": plan_of(*plan).layout.world_size,
            "environment": megatron.environment(plan_of(*plan)),
            "words": [*words(*plan), "--mock-data", "--tokenizer-type", "NullTokenizer"],
        }
        for plan in plans
    ]
    done = subprocess.run(
        [sys.executable, HERE / "megatron_reads.py"], input=json.dumps(asked), text=True, capture_output=True,
        cwd=CHECKOUT, env=os.environ | {"PYTHONPATH": str(CHECKOUT)}, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(zip(map(" ".join, plans), json.loads(done.stdout), strict=True))
