"""What-if and right-sizing."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from shapes import cluster, job, model

from launcher.cluster import Cluster
from launcher.errors import InputError
from launcher.layout import LayoutRequest
from launcher.planner.compare import Case, Comparison, compare, comparison_data, resized

SMALL = model(layers=8)
FREE = LayoutRequest()


def priced(name: str, *, memory_gib: float, price: float, kind: Cluster | None = None) -> Cluster:
    """A cluster of GPUs that differ in name, memory and price only."""
    found = kind or cluster(domains=(4,))
    gpu = replace(found.node.gpu, name=name, memory_bytes=int(memory_gib * 2**30), price_per_hour=price)
    return replace(found, name=name, node=replace(found.node, gpu=gpu))


def compared(*clusters: Cluster, tokens: float | None = 1e9) -> Comparison:
    return compare([Case(c.name, job(on=c, of=SMALL, global_batch=64), FREE) for c in clusters], tokens=tokens)


@pytest.mark.parametrize("num_gpus", [1, 2, 3, 4, 8, 24])
def test_a_resized_cluster_has_that_many_gpus(num_gpus: int) -> None:
    found = resized(cluster(domains=(2, 2)), num_gpus)
    assert found.num_gpus == num_gpus
    members = [gpu for domain in found.node.domains for gpu in domain]
    assert sorted(members) == list(range(found.node.num_gpus))


@pytest.mark.parametrize(("num_gpus", "words"), [(0, "at least 1"), (-8, "at least 1"), (6, "a multiple of 4")])
def test_a_size_that_no_cluster_has_is_reported(num_gpus: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        resized(cluster(domains=(4,)), num_gpus)


def test_scaling_is_the_speed_per_gpu_against_the_smallest_size() -> None:
    sizes = [resized(cluster(domains=(4,)), n) for n in (8, 4, 16)]
    rows = compare([Case(str(c.num_gpus), job(on=c, of=SMALL, global_batch=64), FREE) for c in sizes]).rows
    base = rows[1].tokens_per_s / 4
    assert [row.scaling for row in rows] == pytest.approx([row.tokens_per_s / row.num_gpus / base for row in rows])
    assert rows[1].scaling == 1.0
    assert rows[2].scaling < 1.0


def test_gpu_hours_days_and_cost_follow_from_the_speed() -> None:
    (row,) = compared(priced("a100", memory_gib=80, price=3.0)).rows
    seconds = 1e9 / row.tokens_per_s
    assert row.days == pytest.approx(seconds / 86400)
    assert row.gpu_hours == pytest.approx(seconds * 4 / 3600)
    assert row.cost == pytest.approx(row.gpu_hours * 3.0)


def test_without_tokens_or_price_there_is_no_cost() -> None:
    free = replace(cluster(domains=(4,)).node.gpu, price_per_hour=None)
    unpriced = replace(cluster(domains=(4,)), node=replace(cluster(domains=(4,)).node, gpu=free))
    assert compared(unpriced).rows[0].cost is None
    assert compared(unpriced).rows[0].gpu_hours is not None
    assert compared(unpriced, tokens=None).rows[0].gpu_hours is None


def test_a_cheaper_gpu_that_is_enough_is_reported() -> None:
    found = compared(priced("a100_sxm_80g", memory_gib=80, price=3.0), priced("a10", memory_gib=24, price=0.5))
    reported = "\n".join(found.verdicts)
    assert "a whole A100 is more than this job needs: a10 is enough" in reported
    assert "cheapest: a10" in reported


def test_where_the_a100_is_cheapest_by_the_token_that_is_reported() -> None:
    found = compared(priced("a100_sxm_80g", memory_gib=80, price=1.0), priced("a10", memory_gib=24, price=1.5))
    assert "an A100 earns its price: a10 costs " in "\n".join(found.verdicts)


def test_a_gpu_that_the_job_does_not_fit_is_a_row_with_the_reason() -> None:
    found = compared(priced("a100_sxm_80g", memory_gib=80, price=3.0), priced("tiny", memory_gib=1.2, price=0.1))
    assert found.rows[1].best is None
    assert "fits in memory" in found.rows[1].note
    assert not any("tiny" in verdict for verdict in found.verdicts)


def test_spare_memory_names_the_smaller_gpus_that_hold_the_job() -> None:
    single = cluster(domains=(1,))
    large = priced("a100_sxm_80g", memory_gib=800, price=3.0, kind=single)
    found = compared(large, priced("a10", memory_gib=24, price=0.5, kind=single))
    assert any(v.startswith("a100_sxm_80g uses") and v.endswith(": a10") for v in found.verdicts), found.verdicts


def test_a_mig_cluster_counts_the_jobs_side_by_side() -> None:
    slices = cluster(nodes=2, domains=(1,) * 7, memory_gib=10, mig_profile="1g.10gb")
    row = compare([Case("mig", job(on=slices, of=model(layers=4), global_batch=8), FREE)]).rows[0]
    assert (row.num_gpus, row.jobs) == (1, 14)
    assert "14 such jobs run side by side" in row.note


def test_the_document_of_a_comparison_is_plain_data() -> None:
    found = compared(priced("a100_sxm_80g", memory_gib=80, price=3.0), priced("tiny", memory_gib=1.2, price=0.1))
    document = json.loads(json.dumps(comparison_data(found)))
    assert document["tokens"] == 1e9
    assert [row["label"] for row in document["rows"]] == ["a100_sxm_80g", "tiny"]
    assert document["rows"][0]["plan"]["step_time_s"] == found.rows[0].best.estimate.step_time_s
    assert document["rows"][1]["plan"] is None and document["rows"][1]["note"]
