"""One profile of the software for planning and for running: the same layout from every command."""

from __future__ import annotations

import pytest

from launcher import Job
from launcher.api import estimate
from launcher.config.compose import load
from launcher.errors import InputError
from launcher.model import Training
from launcher.planner.build import limits, make_plan
from launcher.planner.search import search
from launcher.stacks import stack_of
from launcher.stacks.profiles import HABITS, PROFILES, sources_of

CASES = [
    ["cluster=dgx_a100_80g", "model=llama3_8b", "train.global_batch=64"],
    ["cluster=dgx_a100_80g", "model=llama2_13b", "train.global_batch=32", "layout.recompute=none"],
    ["cluster=dgx_a100_80g", "cluster.num_nodes=8", "model=llama3_70b", "train.global_batch=128"],
    ["cluster=dgx_a100_40g", "cluster.num_nodes=2", "model=gpt3_6b7", "train.global_batch=48"],
    ["cluster=dgx_a100_80g", "model=gpt3_1b3", "train.global_batch=16", "train.engine=deepspeed"],
    ["cluster=a100_pcie_80g_bridged", "model=gpt3_2b7", "train.global_batch=16"],
]


@pytest.mark.parametrize("overrides", CASES, ids=[" ".join(words) for words in CASES])
def test_plan_and_run_choose_the_same_layout(overrides: list[str]) -> None:
    settings = load(overrides)
    to_run = make_plan(settings.job, settings.request, settings.run_options, to_run=True)
    assert make_plan(settings.job, settings.request, settings.run_options).layout == to_run.layout
    refuse = limits(settings.job, settings.run_options)
    assert search(settings.job, settings.request, top=10, refuse=refuse).best.layout == to_run.layout


def test_the_loss_of_our_engine_is_counted_as_it_is_built() -> None:
    """Divided over tp, and not gathered: 114 GiB were once counted where 43 are needed."""
    words = "cluster=dgx_a100_80g model=llama3_8b train.global_batch=64 layout.tp=8 layout.pp=1 layout.dp=1"
    settings = load([*words.split(), "layout.sequence_parallel=true", "layout.micro_batch=4"])
    plan = make_plan(settings.job, settings.request, settings.run_options, to_run=True)
    assert plan.estimate["memory_bytes_per_gpu"] < 50 * 2**30


def test_a_layout_that_the_engines_cannot_run_is_named_where_it_is_faster() -> None:
    words = "cluster=dgx_a100_80g cluster.num_nodes=16 model=gpt3_13b train.global_batch=64 layout.pp=8"
    settings = load(words.split())
    why = make_plan(settings.job, settings.request, settings.run_options).why
    found = search(settings.job, settings.request, top=1, refuse=limits(settings.job, settings.run_options))
    free = search(settings.job, settings.request, top=1)
    faster = free.best.estimate.step_time_s < found.best.estimate.step_time_s
    assert faster == any("but torch" in line or "but the launcher" in line for line in why)


@pytest.mark.parametrize("name", PROFILES)
def test_every_habit_of_a_profile_has_a_source_in_every_year(name: str) -> None:
    for year in (2018, 2021, 2024, 2030):
        assert set(sources_of(name, year=year)) == set(HABITS)
        assert all(sources_of(name, year=year).values())
        assert stack_of(name, year=year).name == name


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_can_be_chosen_and_each_habit_set(name: str) -> None:
    assert load([f"stack={name}"]).job.stack == stack_of(name)
    changed = load([f"stack={name}", "stack.fused_rotary=true", "stack.tp_overlap=async", "stack.year=2021"]).job.stack
    assert (changed.fused_rotary, changed.tp_overlap, changed.year) == (True, "async", 2021)


def test_what_software_does_is_not_inferred_from_the_models_family_or_the_zero_stage() -> None:
    words = ["cluster=dgx_a100_80g", "model=gpt3_1b3", "train.global_batch=64", "stack=megatron_lm"]
    stacks = [load([*words, *more]).job.stack for more in ([], ["model.norm=rmsnorm"], ["layout.zero_stage=1"])]
    assert stacks[0] == stacks[1] == stacks[2]


@pytest.mark.parametrize(("year", "tensors"), [(2023, 4), (2024, 3), (2026, 3)])
def test_megatron_lm_keeps_the_input_of_a_gated_activation_alone_since_it_fuses_it(year: int, tensors: int) -> None:
    words = ["cluster=dgx_a100_80g", "model=llama2_7b", "train.global_batch=64", "stack=megatron_lm", "layout.tp=1"]
    words.append(f"stack.year={year}")
    kept, fused, apart = (
        estimate([*words, *more]).memory["activations"]
        for more in ([], ["stack.fused_activation=true"], ["stack.fused_activation=false"])
    )
    assert kept == (fused if tensors == 3 else apart)
    assert apart - fused == pytest.approx(32 * 2 * 4096 * 11008)  # layers × bytes × tokens × inner width


@pytest.mark.parametrize("year", [2021, 2023, 2025])
def test_megatron_lm_sums_bf16_gradients_in_fp32_and_divides_its_logits(year: int) -> None:
    """As its arguments and its loss do (megatron/training/arguments.py, core/tensor_parallel/cross_entropy.py)."""
    stack = stack_of("megatron_lm", year=year)
    assert [stack.reduces_in(Training(global_batch=8, dtype=dtype)) for dtype in ("bf16", "fp16")] == ["fp32", "fp16"]
    assert stack.loss_parallel and not stack.wide_loss
    assert stack.tensor_parallel_dtype(Training(global_batch=8, dtype="bf16"), sequence_parallel=False) == "bf16"


def test_a_13b_model_on_whole_gpus_runs_where_gradients_are_bf16_and_not_where_they_are_fp32() -> None:
    """It ran in Aleph Alpha's trainer (Hagemann et al. 2023): 13B parameters × 6 bytes are 78 GiB of 79 already."""
    words = "cluster=dgx_a100_80g cluster.num_nodes=8 model=llama2_13b model.vocab=128000 train.global_batch=64"
    layout = "layout.tp=1 layout.pp=1 layout.dp=64 layout.zero_stage=1 layout.micro_batch=1 layout.recompute=full"
    asked = [*words.split(), *layout.split(), "train.attention=flash"]
    fits = {name: estimate([*asked, f"stack={name}"]).fits for name in ("scaling", "megatron_lm")}
    assert fits == {"scaling": True, "megatron_lm": False}


NOT_YET = {
    "megatron_lm of 2021": ("megatron_lm", 2021, {"zero_stage": 0, "cp": 1, "sequence_parallel": False}),
    "megatron_lm of 2023": ("megatron_lm", 2023, {"cp": 1}),
    "megatron_deepspeed of 2022": ("megatron_deepspeed", 2022, {"cp": 1, "sequence_parallel": False}),
    "scaling": ("scaling", 2024, {"cp": 1}),
    "internevo": ("internevo", 2024, {"cp": 1}),
}


@pytest.mark.parametrize(("name", "year", "lacks"), NOT_YET.values(), ids=NOT_YET)
def test_a_search_proposes_only_what_the_software_has(name: str, year: int, lacks: dict[str, object]) -> None:
    """A model of 1T parameters was once planned with ZeRO-3 in the Megatron-LM of 2021, which shards nothing."""
    words = "cluster=selene cluster.num_nodes=384 model=megatron_1t train.global_batch=3072"
    settings = load([*words.split(), f"stack={name}", f"stack.year={year}"])
    found = search(settings.job, settings.request, top=20).candidates
    assert all(getattr(candidate.layout, key) == value for candidate in found for key, value in lacks.items())
    stack = settings.job.stack
    stages = {c.layout.zero_stage for c in found if c.layout.pp > 1 and c.layout.dp > 1}
    assert stages <= set(stack.pipeline_zero_stages)


def test_what_is_pinned_is_estimated_though_the_software_has_it_not() -> None:
    """Forks have more than what they were made from."""
    words = "cluster=dgx_a100_80g model=gpt3_1b3 train.global_batch=64 stack=megatron_lm stack.year=2021"
    settings = load([*words.split(), "layout.zero_stage=3", "layout.cp=2"])
    layout = search(settings.job, settings.request, top=1).best.layout
    assert (layout.zero_stage, layout.cp) == (3, 2)


def test_a_pipeline_that_is_asked_of_software_without_one_is_estimated_or_refused() -> None:
    words = ["cluster=dgx_a100_80g", "model=gpt3_1b3", "train.global_batch=64", "layout.pp=2", "stack=fsdp"]
    found = Job.from_overrides(words).search(top=1).candidates[0].layout
    assert (found.pp, found.zero_stage) == (2, 0)


def test_the_year_of_the_software_is_a_key_of_the_stack() -> None:
    with pytest.raises(InputError, match=r"train\.software_year"):
        load(["train.software_year=2021"])
    assert load(["stack=megatron_lm", "stack.year=2021"]).job.stack.tp_overlap == "none"
