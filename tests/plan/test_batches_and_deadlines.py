"""Batches near a bad one, the batch that nobody chose, deadlines, and plans in another order."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from math import gcd

import pytest
from shapes import cluster, job, model

from launcher.cli import main
from launcher.config.compose import load
from launcher.errors import NoLayoutFits
from launcher.layout import LayoutRequest
from launcher.planner.batches import better_batches, near_batches, unchosen_batch, usual_batch
from launcher.planner.compare import Case, compare, ordered, resized
from launcher.planner.deadline import fewest_gpus, largest_model, within_deadline
from launcher.planner.distinct import by, front
from launcher.planner.search import LESS, search
from launcher.units import GIB

FREE = LayoutRequest()
SMALL = model(layers=8)


@pytest.mark.parametrize(
    ("batch", "ranks", "near"),
    [
        (511, 64, [496, 512]),
        (513, 64, [512, 528]),
        (512, 64, []),
        (1536, 1024, []),
        (16, 1024, []),
        (1000, 64, [960, 1024]),
        (7, 8, []),
        (99_999_999, 16384, [99_991_552, 100_007_936]),
    ],
)
def test_the_nearest_batches_that_share_more_with_the_ranks_are_found(batch: int, ranks: int, near: list[int]) -> None:
    assert near_batches(batch, ranks) == near
    assert all(gcd(each, ranks) > gcd(batch, ranks) for each in near)


def test_a_bad_batch_is_named_with_its_cost_and_the_good_ones_near_it() -> None:
    bad = job(on=cluster(domains=(8,)), of=SMALL, global_batch=63)
    best = search(bad, FREE, top=1).best
    (line,) = better_batches(bad, FREE, best, None)
    assert line.startswith("train.global_batch=63 costs ") and "8 ranks" in line
    good = job(on=cluster(domains=(8,)), of=SMALL, global_batch=64)
    ratio = search(good, FREE, top=1).best.estimate.tokens_per_s_per_gpu / best.estimate.tokens_per_s_per_gpu
    assert f"64 trains {ratio:.2f}× as many tokens" in line and ratio > 1.2
    assert list(better_batches(good, FREE, search(good, FREE, top=1).best, None)) == []


@pytest.mark.parametrize(("name", "tokens"), [("gpt3_125m", 0.5e6), ("gpt3_6b7", 2e6), ("gpt3_175b", 3.2e6)])
def test_the_batch_that_is_proposed_has_about_as_many_tokens_as_the_published_one(name: str, tokens: float) -> None:
    asked = load(["cluster=dgx_a100_80g", f"model={name}"]).job
    assert usual_batch(asked) * asked.model.seq_len == pytest.approx(tokens, rel=0.4)
    (line,) = unchosen_batch(asked)
    assert f"train.global_batch={usual_batch(asked)}" in line and "default" in line


def test_a_batch_is_asked_for_only_where_it_was_not_set(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "cluster=dgx_a100_80g", "model=gpt3_350m", "top=1"]
    assert main(words) == 0
    assert "a default that nobody chose" in capsys.readouterr().out
    assert main([*words, "train.global_batch=16"]) == 0
    assert "nobody chose" not in capsys.readouterr().out


def test_the_fewest_gpus_in_time_are_found() -> None:
    """As by asking every size of whole nodes: none smaller is in time."""
    some_job, tokens, days = job(on=cluster(nodes=1, domains=(4,)), of=SMALL, global_batch=96), 4e10, 1.0
    row = fewest_gpus("x", some_job, lambda _: FREE, tokens=tokens, days=days)
    assert row.days is not None and row.days <= days and row.label == f"x × {row.num_gpus}"
    smaller = [size for size in (1, 2, 4, 8, 12, 16, 20, 24, 28, 32) if size < row.num_gpus]
    assert smaller
    clusters = [resized(some_job.cluster, size) for size in smaller]
    others = compare(
        [Case(str(c.num_gpus), job(on=c, of=SMALL, global_batch=96), FREE) for c in clusters], tokens=tokens
    )
    assert all(other.days is None or other.days > days for other in others.rows)


def test_a_deadline_that_no_size_meets_is_said_with_the_best_that_was_found() -> None:
    some_job = job(on=cluster(nodes=1, domains=(4,)), of=SMALL, global_batch=8)
    row = fewest_gpus("x", some_job, lambda _: FREE, tokens=1e12, days=1.0)
    found = within_deadline([row], tokens=1e12, days=1.0, what="cluster")
    assert "not in 1 days" in row.note or "no size" in row.note
    assert found.verdicts[0].startswith("none trains")
    never = fewest_gpus("x", some_job, lambda _: FREE, tokens=1e18, days=1.0)
    assert never.note == "not in 1 days: 16,384 GPUs would take longer at their peak rate"


def test_clusters_are_compared_by_the_smallest_size_that_is_in_time(capsys: pytest.CaptureFixture[str]) -> None:
    words = "model=gpt3_1b3 train.global_batch=512 tokens=30e9 days=5 sort=cost output=json"
    assert main(["plan", "-m", "cluster=dgx_a100_80g,azure_ndv4_a100_80g", *words.split()]) == 0
    document = json.loads(capsys.readouterr().out)
    costs = [row["cost"] for row in document["rows"]]
    assert costs == sorted(costs) and all(row["days"] <= 5 for row in document["rows"])
    assert [line.split(" in 5 days")[0] for line in document["verdicts"]] == ["smallest", "cheapest"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("days=3", "days=3 is a deadline for a number of tokens: set tokens"),
        ("days=3 tokens=1e9 sizes=8,16", "days=3 finds the number of GPUs itself: leave out sizes"),
        ("days=0 tokens=1e9", "days = 0"),
        ("tokens_per_parameter=20", "finds the largest model that is trained in time: set days"),
        ("tokens_per_parameter=20 days=3 tokens=1e9", "leave out tokens and sizes"),
        ("sort=speed", "not one of time, memory, cost"),
    ],
)
def test_deadlines_and_orders_that_make_no_sense_are_refused(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "cluster=dgx_a100_80g", "model=gpt3_350m", "train.global_batch=64", *words.split()]) == 2
    assert message in capsys.readouterr().err


def test_the_largest_model_that_a_budget_trains_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    """Twenty tokens a parameter, each model with the batch of published ones of its size."""
    words = "cluster=dgx_a100_80g stack=megatron_lm tokens_per_parameter=20 days=5 output=json"
    assert main(["plan", "-m", "model=gpt3_350m,gpt3_2b7,gpt3_1b3,gpt3_6b7", *words.split()]) == 0
    document = json.loads(capsys.readouterr().out)
    names, in_time = zip(*((row["label"].split(",")[0], row["days"] <= 5) for row in document["rows"]), strict=True)
    assert dict(zip(names, in_time, strict=True)) == {
        "gpt3_350m": True, "gpt3_2b7": False, "gpt3_1b3": True, "gpt3_6b7": False
    }  # fmt: skip
    line, *batches = document["verdicts"]
    assert len(batches) == 4 and all("was not set" in each for each in batches)
    assert line.startswith("largest in 5 days on 8 GPUs: gpt3_1b3, batch 512: 1.3B, 26.4B tokens")
    (row,) = [row for row in document["rows"] if row["label"].startswith("gpt3_1b3")]
    assert row["days"] == pytest.approx(20 * 1.316e9**2 / 1.316e9 / row["tokens_per_s"] / 86400, rel=0.01)
    room = float(re.search(r"time for ([\d.]+)B", line)[1])  # type: ignore[index]
    assert room == pytest.approx(1.316 * (5 / row["days"]) ** 0.5, rel=0.03)


def test_no_model_of_a_list_in_time_is_said() -> None:
    asked = job(on=cluster(domains=(4,)), of=SMALL, global_batch=8)
    found = largest_model([Case("x", asked, FREE)], tokens_per_parameter=1e6, days=1.0)
    assert found.rows[0].best and found.verdicts[0].startswith("none of these models is trained in 1 days")


def test_plans_by_memory_are_those_that_no_faster_plan_beats() -> None:
    plans = search(job(on=cluster(domains=(8,)), of=SMALL), FREE, top=40).candidates
    kept = by(plans, "memory")
    needs = [plan.estimate.memory_bytes_per_gpu for plan in kept]
    assert needs == sorted(needs) and len(kept) > 1 and set(map(id, kept)) == set(map(id, front(plans)))
    for plan in plans:
        time, memory = plan.estimate.step_time_s, plan.estimate.memory_bytes_per_gpu
        assert any(k.estimate.step_time_s <= time and k.estimate.memory_bytes_per_gpu <= memory for k in kept)
    assert by(plans, None) == list(plans)
    assert [p.estimate.step_time_s for p in by(plans, "time")] == sorted(p.estimate.step_time_s for p in plans)


def test_the_table_is_in_the_order_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["plan", "cluster=dgx_a100_80g", "model=gpt3_1b3", "layout.pp=1", "train.global_batch=64", "sort=memory"])
        == 0
    )
    memory = [float(each) for each in re.findall(r"([\d.]+) GiB +\d+%", capsys.readouterr().out)]
    assert len(memory) > 1 and memory == sorted(memory)


def test_plans_by_memory_go_down_to_the_least_that_the_model_needs(capsys: pytest.CaptureFixture[str]) -> None:
    """Each is the best in the memory that it is given; with a step less than the first none fits."""
    words = ["cluster=dgx_a100_80g", "model=gpt3_2b7", "layout.pp=1", "train.global_batch=64", "stack=fsdp"]
    assert main(["plan", *words, "top=30", "sort=memory", "output=json"]) == 0
    plans, asked = json.loads(capsys.readouterr().out)["plans"], load(words)
    needs, times = ([plan[key] for plan in plans] for key in ("memory_bytes_per_gpu", "step_time_s"))
    assert needs == sorted(needs) and times == sorted(times, reverse=True) and 3 < len(plans) < 30
    assert needs[0] < 0.4 * needs[-1]
    assert plans[-1]["why"][0].startswith("a step of") and "slower" in plans[0]["why"][0]
    for memory in needs[::3]:
        within = search(asked.job, replace(asked.request, max_memory_gib=1.0001 * memory / GIB), top=1)
        assert within.best.estimate.memory_bytes_per_gpu == memory
    with pytest.raises(NoLayoutFits):
        search(asked.job, replace(asked.request, max_memory_gib=LESS * needs[0] / GIB), top=1)


def test_compared_clusters_are_ordered_and_those_without_a_plan_come_last() -> None:
    sizes = [resized(cluster(domains=(4,)), size) for size in (4, 16, 8)]
    cases = [Case(str(c.num_gpus), job(on=c, of=SMALL, global_batch=64), FREE) for c in sizes]
    cases.insert(0, Case("none", job(on=sizes[0], of=SMALL, global_batch=63), LayoutRequest(dp=2)))
    labels = [row.label for row in ordered(compare(cases), "time").rows]
    assert labels == ["16", "8", "4", "none"]
