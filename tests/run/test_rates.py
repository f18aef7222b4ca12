"""result.json of the measuring recipes: what a damaged one is called, and that every reader of it says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.cli import main
from launcher.config.compose import load
from launcher.errors import InputError
from launcher.planner.launch_only import measuring_plan
from launcher.planner.record import write_plan
from launcher.run.folder import RunFolder
from launcher.run.rates import read_rates

# The first row of each, as the recipes wrote them on one CPU rank (the collective: on two).
PRODUCT: dict[str, Any] = {
    "recipe": "gemm", "date": "2026-11-30", "world_size": 1, "device": "cpu", "hosts": ["n1"],
    "versions": {"torch": "2.13.0+cpu"},
    "results": [
        {"name": "square 512", "m": 512, "n": 512, "k": 512, "dtype": "fp32", "time_s": 0.0505, "tflops": 0.0053,
         "total_tflops": 0.0053, "core_tflops": 0.0208, "fraction_of_peak": None,
         "slowest": {"rank": 0, "host": "n1", "time_s": 0.0505}},
    ],
    "cluster": {"node": {"gpu": {"gemm_tflops": {"fp32": 0.0543}}}},
}  # fmt: skip
COPY: dict[str, Any] = {
    **PRODUCT, "recipe": "memory",
    "results": [
        {"name": "copy", "bytes": 134217728, "time_s": 0.0542, "gbytes_per_s": 2.4758, "total_gbytes_per_s": 2.4758,
         "slowest": {"rank": 0, "host": "n1", "time_s": 0.0542}},
    ],
    "cluster": {"node": {"gpu": {"copy_gbytes_per_s": 2.4758}}},
}  # fmt: skip
COLLECTIVE: dict[str, Any] = {
    "recipe": "collectives", "date": "2026-11-30", "backend": "gloo", "dtype": "fp32", "world_size": 2, "hosts": ["n1"],
    "versions": {"torch": "2.13.0+cpu"},
    "results": [
        {"size": 1024, "count": 256, "type": "float", "redop": "sum", "root": "-1", "out_of_place": None,
         "in_place": {"time": 5226.2, "alg_bw": 0.00019, "bus_bw": 0.00019, "nwrong": 0.0}, "operation": "all_reduce",
         "axis": "dp", "link": "pcie", "group_size": 2, "per_node": 2, "num_groups": 1, "bytes": 1024, "iterations": 20,
         "time_s": 0.005226, "p50_s": 0.003472, "p99_s": 0.019579, "cpu_s": 0.000269, "algbw_gbytes_per_s": 0.00019,
         "busbw_gbytes_per_s": 0.00019, "alone_s": None, "alone_cpu_s": None, "contention": None, "expected_s": 0.0002,
         "groups": [{"ranks": [0, 1], "p50_s": 0.003472}],
         "slowest": {"ranks": [0, 1], "hosts": ["n1"], "time_s": 0.005226}, "wrong": 0},
    ],
    "verdict": {"slow_groups": [], "ranks": [], "hosts": [], "text": "every axis has one group"},
    "cluster": {"node": {"busbw_gbytes_per_s": {"pcie": 0.0007}}},
}  # fmt: skip
TRIAL: dict[str, Any] = {
    "recipe": "tune", "world_size": 8,
    "results": [
        {"layout": "tp2 pp2 dp2 mb8", "predicted_step_time_s": 0.22, "step_time_s": 0.21, "stopped_early": False,
         "failed": None, "steps_s": [0.21, 0.22], "cpu_s": [0.4, 0.41], "memory_bytes": 10**8, "seconds": 3.0,
         "plan": "plans/1.json"},
    ],
}  # fmt: skip
OTHER = (None, "x", -1, [], {}, float("nan"), 1e308, True, [1])  # in place of a value


def measured_in(folder: Path, document: dict[str, Any]) -> Path:
    """A run folder as the recipe leaves it."""
    job = load(["cluster=cpu", "cluster.node.num_gpus=2", f"recipe={document['recipe']}"])
    folder.mkdir()
    write_plan(measuring_plan(job.job, job.request, job.run_options), RunFolder(folder).plan)
    RunFolder(folder).result.write_text(json.dumps(document))
    return folder


def edits(value: Any) -> list[Any]:
    """The document with one value at a time replaced, wherever it is."""
    found = [other for other in OTHER if type(other) is not type(value) or other != other]
    if isinstance(value, dict):
        found += [{**value, key: other} for key in value for other in edits(value[key])]
        found += [{key: value[key] for key in value if key != left} for left in value]
    elif isinstance(value, list) and value:
        found += [[other, *value[1:]] for other in edits(value[0])]
    return found


@pytest.mark.parametrize("document", [PRODUCT, COPY, COLLECTIVE, TRIAL], ids=lambda document: document["recipe"])
def test_a_measurement_is_shown_and_a_damaged_one_is_refused_by_every_reader(
    document: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, whole = measured_in(tmp_path / "a", document), measured_in(tmp_path / "whole", document)
    commands = [["report", str(folder)], ["compare", str(whole), str(folder)],
                ["calibrate", str(folder), "cluster=cpu", "dry_run=true"]]  # fmt: skip
    if document is TRIAL:
        commands.pop()  # it reads the plan files
    assert [main(command) for command in commands] == [0] * len(commands)

    found: dict[str, list[tuple[Any, str]]] = {"refused": [], "read": []}
    for edit in edits(document)[len(OTHER) - 1 :]:
        RunFolder(folder).result.write_text(json.dumps(edit))
        try:
            read_rates(RunFolder(folder).result)
            found["read"].append((edit, ""))
        except InputError as error:
            found["refused"].append((edit, str(error)))
    assert len(found["refused"]) > 40
    assert all(f"is not a result of the recipe {document['recipe']} (" in said for _, said in found["refused"])
    for edit, said in found["refused"][::20]:  # one in twenty by the commands, which take longer
        RunFolder(folder).result.write_text(json.dumps(edit))
        capsys.readouterr()
        assert [main(command) for command in commands] == [2] * len(commands)
        assert capsys.readouterr().err.count(said) == len(commands)
    for edit, _ in found["read"][::10]:  # what is not read may be anything
        RunFolder(folder).result.write_text(json.dumps(edit))
        assert {main(command) for command in commands} <= {0, 2}


def test_the_page_of_trials_has_their_plans_and_a_recipe_of_ones_own_may_call_its_rows_as_it_likes(
    tmp_path: Path,
) -> None:
    folder = measured_in(tmp_path / "a", TRIAL)
    assert main(["report", str(folder)]) == 0
    page = RunFolder(folder).report.read_text()
    assert "tp2 pp2 dp2 mb8" in page and "220.0 ms" in page and "Keys for the cluster file" not in page

    RunFolder(folder).result.write_text(json.dumps({"recipe": "mine", "results": [{"took": 1}]}))
    assert read_rates(RunFolder(folder).result) is None
    assert main(["report", str(folder)]) == 0
