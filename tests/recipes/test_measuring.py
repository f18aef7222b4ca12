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

import preloaded
import pytest
import torch
import torch.distributed as dist

from launcher import env
from launcher.cluster.readers_nccl_tests import read_nccl_tests
from launcher.config.compose import load
from launcher.errors import InputError
from launcher.planner.options import OPERATIONS, RECIPES, message_sizes
from launcher.resources import resource
from launcher.run.folder import RunFolder
from launcher.run.rates import read_rates
from launcher.worker.metrics import nccl_tests
from launcher.worker.metrics.verdict import GroupTime, verdict


def recipe(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", resource("recipes") / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


collectives = recipe("collectives")
GROUPS = ("recipe=collectives", "layout.tp=2", "layout.pp=1", "layout.dp=2", "cluster.node.num_gpus=4")


def run(tmp_path: Path, *overrides: str, start: Any = preloaded.run) -> dict[str, Any]:
    """The result of `launcher run` in an empty folder."""
    command = [sys.executable, "-m", "launcher.cli", "run", "tracking=none", f"run_dir={tmp_path / 'run'}", *overrides]
    done = start(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    short = json.loads(done.stdout.splitlines()[-1])
    file = RunFolder(tmp_path / "run").result
    document: dict[str, Any] = json.loads(file.read_text())
    assert short.pop("result") == str(file)
    assert short == {name: document[name] for name in short} and short.keys() >= document.keys() - {"results"}
    measured = document if "results" in document else None  # every key that a page or a calibration reads is there
    assert read_rates(file) == measured
    return document


def plan_again(cluster: dict[str, Any]) -> None:
    """A recipe reports rates as keys of the cluster file."""
    from launcher.config.compose import compose_config, from_config

    config = compose_config([])
    node = config["cluster"]["node"]
    measured = cluster["node"]
    node["gpu"] |= measured.pop("gpu", {})
    known = {"measured": cluster["measured"]} if "measured" in cluster else {}
    from_config(config | {"cluster": config["cluster"] | {"node": node | measured} | known})


@pytest.mark.slow
def test_collectives_over_every_axis_are_right_and_reported(tmp_path: Path) -> None:
    document = run(
        tmp_path, *GROUPS, "recipe.sizes=1K:8K:8", "recipe.iterations=2", "recipe.seconds=0", "recipe.dtype=bf16"
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
        forms = {"all_reduce": (False, True), "all_gather": (True, True), "reduce_scatter": (True, True)}
        assert (bool(r["out_of_place"]), bool(r["in_place"])) == forms.get(r["operation"], (True, False))
        assert 0 < r["p50_s"] <= r["p99_s"]
        assert 0 < r["cpu_s"] < 4 * r["time_s"]
        assert r["expected_s"] > 0
        assert (r["contention"] is None) == (r["axis"] == "world")
    assert document["out_of_bounds"] == {"count": 0, "okay": "true"}
    assert document["average_bus_bandwidth"]["bandwidth"] > 0
    assert set(document["cluster"]["node"]["busbw_gbytes_per_s"]) == {"pcie"}
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["model"]["name"] == "not given"
    plan_again(document["cluster"])
    the_tables_are_read_back(document)
    calibrated_is_believed(tmp_path)


def the_tables_are_read_back(document: dict[str, Any]) -> None:
    """What is printed is read as nccl-tests' own output is."""
    rows = [r for r in document["results"] if r["operation"] == "all_gather" and r["axis"] == "tp"]
    [read] = read_nccl_tests("\n".join(collectives.table(rows)), "the table")
    assert read.operation == "all_gather"
    for (size, seconds), r in zip(read.points, rows, strict=True):
        slower = max(r[form]["time"] for form in ("out_of_place", "in_place"))
        assert (size, seconds * 1e6) == (r["bytes"], pytest.approx(slower, rel=0.01))


def calibrated_is_believed(tmp_path: Path) -> None:
    """`launcher calibrate` of this run gives curves that the planner reads."""
    command = [sys.executable, "-m", "launcher.cli", "calibrate", "run"]
    done = preloaded.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    other = preloaded.run([*command, "cluster=dgx_a100_80g"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert other.returncode == 2 and "run was measured on cpu (cpu)" in other.stderr
    assert [file.name for file in (tmp_path / "configs/cluster").iterdir()] == ["cpu_measured.yaml"]
    words = [sys.executable, "-m", "launcher.cli", "plan", "cluster=cpu_measured", "layout.tp=2", "top=1"]
    said = preloaded.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert "all_reduce of 2 over pcie" in said.stdout, said.stderr


@pytest.mark.slow
def test_gemm_rates_are_those_of_shared_cores(tmp_path: Path) -> None:
    document = run(
        tmp_path,
        *("recipe=gemm", "model=gpt_tiny"),
        *("layout.tp=2", "layout.pp=1", "layout.dp=2", "layout.micro_batch=2", "cluster.node.num_gpus=4"),
        *("recipe.squares=[64]", "recipe.dtypes=[fp32,bf16]", "recipe.seconds=0.1", "recipe.sequences=[64]"),
    )

    shapes = {r["name"]: (r["m"], r["n"], r["k"]) for r in document["results"] if r["dtype"] == "fp32"}
    assert shapes == {
        "qkv": (256, 192, 128),
        "attention output": (256, 128, 64),
        "mlp up": (256, 256, 128),
        "mlp down": (256, 128, 256),
        "head": (256, 128, 128),
        "square 64": (64, 64, 64),
        "attention 64": (64, 64, 128),
    }
    cores = min(env.usable_cores(), 4)
    for r in document["results"]:
        if not r["name"].startswith("attention"):
            assert r["tflops"] == pytest.approx(2 * r["m"] * r["n"] * r["k"] / r["time_s"] / 1e12)
        assert r["fraction_of_peak"] is None  # a core's peak is unknown
        assert r["total_tflops"] < 1.25 * cores * r["core_tflops"]  # no more than the cores can do
    best = document["cluster"]["node"]["gpu"]["gemm_tflops"]
    products = [r for r in document["results"] if r["dtype"] == "bf16" and "attention " not in r["name"]]
    assert best["bf16"] >= max(r["core_tflops"] for r in products) * 0.999
    plan_again(document["cluster"])


@pytest.mark.slow
def test_memory_and_storage_are_measured_for_the_cluster_file(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    small = ("cluster.node.num_gpus=2", "layout.tp=1", "layout.pp=1", "layout.dp=2", "recipe.bytes=1048576")
    memory = run(tmp_path / "memory", "recipe=memory", *small, "recipe.seconds=0.05")
    storage = run(tmp_path, "recipe=storage", *small, "recipe.rounds=2")

    assert [(r["name"], r["bytes"]) for r in memory["results"]] == [("copy", 2 * 2**20), ("triad", 3 * 2**20)]
    assert memory["cluster"]["node"]["gpu"]["copy_gbytes_per_s"] > 0
    assert [(r["name"], r["writers"]) for r in storage["results"]] == [
        ("write", 1), ("read", 1), ("write", 2), ("read", 2)
    ]  # fmt: skip
    assert set(storage["cluster"]["measured"]["checkpoint_write_gbytes_per_s"]) == {"n1", "n2"}
    assert not (tmp_path / "run" / "storage").exists()
    plan_again(memory["cluster"])
    plan_again({"node": {}, "measured": storage["cluster"]["measured"]})


@pytest.mark.slow
def test_cold_start_phases_add_up_to_about_the_total_and_are_held_against_runs_and_a_budget(tmp_path: Path) -> None:
    two = ("recipe=coldstart", "layout.tp=1", "layout.pp=1", "layout.dp=2", "cluster.node.num_gpus=2")
    document = run(tmp_path, *two, start=subprocess.run)

    phases = document["phases_s"]
    assert all(seconds >= 0 for seconds in phases.values())
    assert phases["start"] > 0.1  # importing torch alone takes longer
    longest = sum(seconds for name, seconds in phases.items() if name != "second_all_reduce")
    assert 0 < document["total_s"] <= longest + 0.05  # each phase is the slowest rank's; the clock ticks every 10 ms
    assert (document["last_total_s"], document["budget_s"]) == ([], None)

    words = ["run", "tracking=none", f"run_dir={tmp_path / 'again'}", "launch.cold_start_budget_s=0.05", *two]
    again = preloaded.run(
        [sys.executable, "-m", "launcher.cli", *words], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert again.returncode == 1
    assert "launch.cold_start_budget_s is 50.0 ms" in again.stderr
    assert "than the median of the last 1 runs" in again.stderr
    written = json.loads(RunFolder(tmp_path / "again").result.read_text())
    assert (written["last_total_s"], written["budget_s"]) == ([document["total_s"]], 0.05)


@pytest.fixture(scope="module")
def alone() -> Iterator[Any]:
    """A process group of this process only."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield nccl_tests.AxisGroup("world", dist.group.WORLD, (0,))
    dist.destroy_process_group()


FORMS = [(form, name) for form in (nccl_tests.OUT_OF_PLACE, nccl_tests.IN_PLACE) for name in form]


@pytest.mark.parametrize(("form", "operation"), [each for each in FORMS if each[1] not in ("all_reduce", "send_recv")])
def test_a_collective_that_delivers_nothing_is_found_wrong(form: Any, operation: str, alone: Any) -> None:
    made = form[operation](alone, 4096, torch.float32, torch.device("cpu"))
    made.fill()
    in_place = form is nccl_tests.IN_PLACE  # one rank has all of it already
    assert made.wrong() > 0 or in_place
    made.call()
    assert made.wrong() == 0


def test_a_reduction_that_misses_a_rank_is_found_wrong() -> None:
    right = nccl_tests.sums(100, 0, 4, torch.device("cpu")).float()
    missing = right - nccl_tests.values(100, 3, torch.float32, torch.device("cpu"))

    assert nccl_tests.differing(right, right, largest=32) == 0
    assert nccl_tests.differing(missing, right, largest=32) == 88  # every eighth of the values that are missing is 0


@pytest.mark.parametrize(
    ("operation", "factor"),
    [("all_reduce", 1.75), ("all_gather", 0.875), ("reduce_scatter", 0.875), ("all_to_all", 0.875), ("send_recv", 1.0)],
)
def test_sizes_and_factors_are_those_of_nccl_tests(operation: str, factor: float, alone: Any) -> None:
    # nccl-tests doc/PERFORMANCE.md, for 8 ranks. Its line for 16 GiB on 8 × A100 in stas00/ml-engineering,
    # network/README.md: 127997 µs, algbw 134.22, busbw 234.89 GB/s, which is 1.75 times as much.
    team = nccl_tests.AxisGroup("tp", alone.group, tuple(range(8)))
    for form in (nccl_tests.OUT_OF_PLACE, nccl_tests.IN_PLACE):
        if operation in form:
            made = form[operation](team, 4096, torch.float32, torch.device("cpu"))
            assert made.num_bytes == 4096
    assert nccl_tests.busbw_factor(operation, 8) == factor


def test_rates_between_nodes_are_reported_for_the_whole_node() -> None:
    from launcher.layout import Layout
    from launcher.planner.record import Plan

    job = load(["cluster=dgx_a100_80g", "cluster.num_nodes=4", "cluster.nodes_per_leaf=2"]).job
    plan = Plan(job, Layout(tp=8, pp=1, dp=4), {}, ())

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
    ("given", "sizes"),
    [
        ("1K:4K:2", (1024, 2048, 4096)),
        ("8:8M:1024", (8, 8192, 8388608)),
        ("1000:9000:8", (1000, 8000)),
        ([8, "1M"], (8, 1048576)),
        ("64", (64,)),
    ],
)
def test_sizes_are_written_as_nccl_tests_writes_them(given: Any, sizes: tuple[int, ...]) -> None:
    assert message_sizes(given) == sizes


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"name": "collectives", "operations": ["all_reduce", "gossip"]}, "recipe.operations"),
        ({"name": "collectives", "sizes": "8:8M:1"}, "recipe.sizes.*factor of at least 2"),
        ({"name": "collectives", "sizes": "8M:8:2"}, "recipe.sizes.*sizes that rise"),
        ({"name": "collectives", "sizes": "8:8Q"}, "recipe.sizes.*sizes in bytes"),
        ({"name": "collectives", "dtype": "int8"}, "recipe.dtype"),
        ({"name": "gemm", "dtypes": []}, "recipe.dtypes"),
        ({"name": "gemm", "squares": [0]}, "recipe.squares"),
    ],
)
def test_unsound_options_are_reported_before_anything_starts(config: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        RECIPES[config["name"]].from_config(config)


def times(slow: set[int], *, factor: float = 2.0) -> list[GroupTime]:
    """What the groups of tp2 × dp4 take where these ranks are slow."""
    tp = [tuple(range(i, i + 2)) for i in range(0, 8, 2)]
    dp = [tuple(range(i, 8, 2)) for i in range(2)]
    return [
        GroupTime(axis, case, ranks, factor if slow & set(ranks) else 1.0)
        for axis, groups in (("tp", tp), ("dp", dp), ("world", [tuple(range(8))]))
        for ranks in groups
        for case in ("all_reduce 64", "all_gather 64")
    ]


@pytest.mark.parametrize(
    ("slow", "hosts", "said"),
    [
        ({3}, ["a"] * 4 + ["b"] * 4, "rank 3 on a, common to the slow groups"),
        (set(), ["a"] * 8, "no group is slow"),
        ({0, 5}, ["a"] * 8, "without a common member"),
    ],
)
def test_the_common_member_of_slow_groups_is_named(slow: set[int], hosts: list[str], said: str) -> None:
    assert said in verdict(times(slow), dict(enumerate(hosts)), threshold=1.25).text


def test_a_link_is_named_by_the_hosts_of_its_slow_group() -> None:
    pairs = [(0, 1), (2, 3), (4, 5)]
    found = [GroupTime("dp", "all_reduce 64", pair, 3.0 if pair == (2, 3) else 1.0) for pair in pairs]
    assert "the link between c and d" in verdict(found, dict(enumerate("abcdef")), threshold=1.25).text
