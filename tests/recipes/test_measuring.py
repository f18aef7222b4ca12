"""The measuring recipes: what they report, and that their checks can fail."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist

from launcher.errors import InputError
from launcher.planner.options import OPERATIONS, RECIPES
from launcher.resources import resource
from launcher.run.folder import RunFolder


def recipe(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", resource("recipes") / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


collectives = recipe("collectives")


def run(tmp_path: Path, *overrides: str) -> dict[str, Any]:
    """The result of `launcher run` in an empty folder."""
    command = [sys.executable, "-m", "launcher.cli", "run", "tracking=none", f"run_dir={tmp_path / 'run'}", *overrides]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    short = json.loads(done.stdout.splitlines()[-1])
    file = RunFolder(tmp_path / "run").result
    document: dict[str, Any] = json.loads(file.read_text())
    assert short.pop("result") == str(file)
    assert short == {name: document[name] for name in short} and short.keys() >= document.keys() - {"results"}
    return document


def plan_again(cluster: dict[str, Any]) -> None:
    """What a recipe tells of the cluster are keys of the cluster file."""
    from launcher.config.compose import compose_config, from_config

    config = compose_config([])
    node = config["cluster"]["node"]
    measured = cluster["node"]
    node["gpu"] |= measured.pop("gpu", {})
    from_config(config | {"cluster": config["cluster"] | {"node": node | measured}})


@pytest.mark.slow
def test_collectives_over_every_axis_are_right_and_reported(tmp_path: Path) -> None:
    document = run(
        tmp_path,
        "recipe=collectives",
        *("layout.tp=2", "layout.pp=1", "layout.dp=2", "cluster.node.num_gpus=4"),
        *("recipe.min_bytes=1000", "recipe.max_bytes=8192", "recipe.iterations=1", "recipe.dtype=bf16"),
    )

    rows = document["results"]
    assert {(r["axis"], r["group_size"], r["num_groups"]) for r in rows} == {
        ("tp", 2, 2),
        ("dp", 2, 2),
        ("world", 4, 1),
    }
    assert {r["operation"] for r in rows} == set(OPERATIONS)
    assert {r["bytes"] for r in rows} == {1024, 8192}
    assert [r["wrong"] for r in rows] == [0] * len(rows)
    for r in rows:
        n = r["group_size"]
        factor = {"all_reduce": 2 * (n - 1) / n, "send_recv": 1.0}.get(r["operation"], (n - 1) / n)
        assert r["algbw_gbytes_per_s"] == pytest.approx(r["bytes"] / r["time_s"] / 1e9)
        assert r["busbw_gbytes_per_s"] == pytest.approx(r["algbw_gbytes_per_s"] * factor)
        assert len(r["slowest"]["ranks"]) == n
    assert set(document["cluster"]["node"]["busbw_gbytes_per_s"]) == {"pcie"}
    plan_again(document["cluster"])


@pytest.mark.slow
def test_gemm_rates_are_reported_for_the_shapes_that_the_layout_leaves(tmp_path: Path) -> None:
    document = run(
        tmp_path,
        "recipe=gemm",
        *("layout.tp=2", "layout.pp=1", "layout.dp=1", "layout.micro_batch=2", "cluster.node.num_gpus=2"),
        *("recipe.squares=[64]", "recipe.dtypes=[fp32,bf16]", "recipe.copy_bytes=1048576"),
    )

    shapes = {r["name"]: (r["m"], r["n"], r["k"]) for r in document["results"] if r["dtype"] == "fp32"}
    assert shapes == {
        "qkv": (256, 192, 128),
        "attention output": (256, 128, 64),
        "mlp up": (256, 256, 128),
        "mlp down": (256, 128, 256),
        "head": (256, 128, 128),
        "square 64": (64, 64, 64),
    }
    for r in document["results"]:
        assert r["tflops"] == pytest.approx(2 * r["m"] * r["n"] * r["k"] / r["time_s"] / 1e12)
        assert r["fraction_of_peak"] is None  # a core's peak is unknown
    best = document["cluster"]["node"]["gpu"]["gemm_tflops"]
    assert best["bf16"] == pytest.approx(
        max(r["tflops"] for r in document["results"] if r["dtype"] == "bf16"), abs=1e-4
    )
    plan_again(document["cluster"])


@pytest.mark.slow
def test_cold_start_phases_add_up_to_about_the_total(tmp_path: Path) -> None:
    document = run(tmp_path, "recipe=coldstart", "layout.tp=1", "layout.pp=1", "layout.dp=2", "cluster.node.num_gpus=2")

    phases = document["phases_s"]
    assert all(seconds >= 0 for seconds in phases.values())
    assert phases["start"] > 0.1  # importing torch alone takes longer
    longest = sum(seconds for name, seconds in phases.items() if name != "second_all_reduce")
    assert 0 < document["total_s"] <= longest + 0.05  # each phase is the slowest rank's; the clock ticks every 10 ms


@pytest.fixture(scope="module")
def alone() -> Iterator[Any]:
    """A process group of this process only."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield collectives.Team("world", dist.group.WORLD, (0,))
    dist.destroy_process_group()


@pytest.mark.parametrize("operation", ["all_gather", "reduce_scatter", "all_to_all"])
def test_a_collective_that_delivers_nothing_is_found_wrong(operation: str, alone: Any) -> None:
    made = collectives.PREPARE[operation](alone, 4096, torch.float32, torch.device("cpu"))
    made.fill()
    assert made.wrong() > 0
    made.call()
    assert made.wrong() == 0


def test_a_reduction_that_misses_a_rank_is_found_wrong() -> None:
    right = collectives.sums(100, 0, 4, torch.device("cpu")).float()
    missing = right - collectives.values(100, 3, torch.float32, torch.device("cpu"))

    assert collectives.differing(right, right, largest=32) == 0
    assert collectives.differing(missing, right, largest=32) == 88  # every eighth of the values that are missing is 0


@pytest.mark.parametrize(
    ("operation", "factor"),
    [("all_reduce", 1.75), ("all_gather", 0.875), ("reduce_scatter", 0.875), ("all_to_all", 0.875), ("send_recv", 1.0)],
)
def test_sizes_and_factors_are_those_of_nccl_tests(operation: str, factor: float, alone: Any) -> None:
    # nccl-tests doc/PERFORMANCE.md, for 8 ranks. Its line for 16 GiB on 8 × A100 in stas00/ml-engineering,
    # network/README.md: 127997 µs, algbw 134.22, busbw 234.89 GB/s, which is 1.75 times as much.
    team = collectives.Team("tp", alone.group, tuple(range(8)))
    made = collectives.PREPARE[operation](team, 4096, torch.float32, torch.device("cpu"))

    assert (made.num_bytes, made.factor) == (4096, factor)


def test_rates_between_nodes_are_reported_for_the_whole_node() -> None:
    from launcher.config.compose import load
    from launcher.layout import Layout
    from launcher.planner.record import Plan

    job = load(["cluster=dgx_a100_80g", "cluster.num_nodes=4", "cluster.nodes_per_leaf=2"]).job
    plan = Plan(job, Layout(tp=8, pp=1, dp=4), {}, (), {})

    def line(link: str, operation: str, num_bytes: int, busbw: float, ranks: list[int]) -> dict[str, Any]:
        slowest = {"ranks": ranks}
        return {
            "link": link, "operation": operation, "bytes": num_bytes, "busbw_gbytes_per_s": busbw, "slowest": slowest
        }  # fmt: skip

    rows = [
        line("nvlink", "all_reduce", 1024, 1.0, list(range(8))),
        line("nvlink", "all_reduce", 2**30, 229.0, list(range(8))),
        line("nvlink", "all_gather", 2**30, 240.0, list(range(8))),
        line("spine", "all_reduce", 2**30, 90.0, [0, 8, 16, 24]),
        line("spine", "all_gather", 2**30, 22.0, [0, 8, 16, 24]),
        line("spine", "all_gather", 2**30, 180.0, list(range(32))),
    ]
    assert collectives.cluster_keys(plan, rows) == {"nvlink": 229.0, "spine": 180.0}
    assert collectives.cluster_keys(plan, rows[:-1]) == {"nvlink": 229.0, "spine": 8 * 22.0}


@pytest.mark.parametrize(
    ("first", "last", "factor", "sizes"),
    [(1024, 4096, 2, [1024, 2048, 4096]), (1000, 9000, 8, [1024, 8192]), (1, 3, 2, [1, 2]), (5, 7, 2, [])],
)
def test_sizes_are_powers_of_two(first: int, last: int, factor: int, sizes: list[int]) -> None:
    assert list(collectives.powers(first, last, factor)) == sizes


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"name": "collectives", "operations": ["all_reduce", "gossip"]}, "recipe.operations"),
        ({"name": "collectives", "max_bytes": 10}, "recipe.max_bytes=10"),
        ({"name": "collectives", "factor": 3}, "power of two"),
        ({"name": "collectives", "dtype": "int8"}, "recipe.dtype"),
        ({"name": "gemm", "dtypes": []}, "recipe.dtypes"),
        ({"name": "gemm", "squares": [0]}, "recipe.squares"),
    ],
)
def test_unsound_options_are_reported_before_anything_starts(config: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        RECIPES[config["name"]].from_config(config)
