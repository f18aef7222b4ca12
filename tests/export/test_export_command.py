"""`launcher export`: what a target cannot express is not searched, folders are complete, gaps are reported."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from export_plans import KINDS, PLANS, plan_of, whole_plan_of

from launcher.cli import main
from launcher.config.compose import load
from launcher.errors import InputError
from launcher.export.folder import write_folder
from launcher.export.planning import plan_for, with_overrides
from launcher.export.ranks import START_FILE
from launcher.export.target import Target
from launcher.export.targets import TARGETS, names, target
from launcher.planner.record import Plan, read_plan, write_plan

DGX = ["cluster=dgx_a100_80g", "cluster.num_nodes=2", "model=llama3_8b", "train.global_batch=64"]
PLANNED = [name for name in TARGETS if name not in ("hostfile", "rankfile")]  # they need the hosts of a run


def searched(name: str, *words: str) -> Plan:
    chosen = target(name)
    return plan_for(load(with_overrides([*DGX, *words], chosen)), chosen)


@pytest.mark.parametrize("name", PLANNED)
def test_the_best_plan_is_one_that_the_target_can_say(name: str) -> None:
    plan, chosen = searched(name), target(name)
    assert list(chosen.cannot(plan.job, plan.layout)) == []
    assert chosen.write(plan).files


@pytest.mark.parametrize("name", PLANNED)
def test_a_small_machine_with_a_default_layout_has_a_plan_for_every_target(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", f"to={name}"]) == 0
    assert capsys.readouterr().out


def test_zero3_for_megatron_is_planned_without_a_pipeline() -> None:
    assert searched("megatron", "layout.zero_stage=3").layout.pp == 1


def test_deepspeed_is_planned_with_its_own_engine_and_without_context_parallelism() -> None:
    plan = searched("deepspeed")
    assert (plan.job.training.engine, plan.layout.cp) == ("deepspeed", 1)


def test_the_software_that_trains_there_is_planned_for() -> None:
    assert searched("megatron").job.stack.name == "megatron_lm"
    assert searched("accelerate").job.stack.name == "fsdp"
    assert searched("accelerate", "stack=deepspeed").job.stack.name == "deepspeed"
    assert searched("accelerate", "train.engine=deepspeed").job.stack.name == "launcher"
    assert searched("megatron", "stack=fsdp").job.stack.name == "fsdp"


def test_what_is_pinned_and_cannot_be_said_is_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match=r"accelerate has no pipeline: layout.pp=2 .* set layout.pp=1"):
        searched("accelerate", "layout.pp=2")


def test_a_run_that_cannot_be_said_is_refused_as_a_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_plan(whole_plan_of("zero bubble"), tmp_path / "plan.json")
    assert main(["export", str(tmp_path), "to=megatron"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "to=megatron" in err and "layout.schedule=1f1b" in err


def test_what_is_missing_is_reported_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", *DGX, "layout.tp=2", "layout.zero_stage=3", "to=accelerate"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("compute_environment")
    assert "to=accelerate cannot express the micro batch" in err


@pytest.mark.parametrize("name", PLANNED)
def test_a_folder_has_files_start_ranks_plan_and_readme(name: str, tmp_path: Path) -> None:
    chosen, plan = target(name), searched(name)
    folder = tmp_path / "new" / "exported"
    export = chosen.write(plan)
    write_folder(plan, chosen, export, folder)
    assert {path.name for path in folder.iterdir()} == {*export.files, "README.md", "plan.json"}
    assert read_plan(folder / "plan.json").layout == plan.layout
    readme = (folder / "README.md").read_text()
    for line in export.missing:
        assert line in readme
    assert export.start in readme
    for script in folder.glob("*.sh"):
        assert subprocess.run(["bash", "-n", script], capture_output=True).stderr == b""
        assert script.stat().st_mode & 0o100


def test_the_rank_file_is_the_plans_grid_and_placement(tmp_path: Path) -> None:
    plan = plan_of("data first")
    with_hosts = Plan(plan.job, plan.layout, {}, (), plan.options, hosts=("gpu7",))
    chosen = Target("any", "any", (), target("deepspeed").write, lambda *_: iter(()))
    write_folder(with_hosts, chosen, chosen.write(with_hosts), tmp_path / "out")
    with (tmp_path / "out" / "ranks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == plan.layout.world_size
    for row in rows:
        rank = int(row["rank"])
        slot = plan.placement.slot(rank)
        assert (row["host"], int(row["node"]), int(row["gpu"])) == ("gpu7", slot.node, slot.gpu)
        assert {axis: int(row[axis]) for axis in ("tp", "cp", "dp", "pp")} == plan.grid.coordinate(rank)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    assert main(["export", "to=deepspeed", f"out={tmp_path}"]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_that_cannot_be_made_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["export", "to=deepspeed", f"out={tmp_path}/file/out"]) == 2
    assert "give another folder" in capsys.readouterr().err


def test_hosts_in_the_plans_order_number_the_nodes(tmp_path: Path) -> None:
    """The start script finds its node's number by its host's place in the plan, not by its name's."""
    plan = plan_of("zero3")
    here = subprocess.run(["hostname", "-s"], capture_output=True, text=True, check=True).stdout.strip()
    with_hosts = Plan(plan.job, plan.layout, {}, (), plan.options, hosts=("zz.cluster", f"{here}.cluster"))
    chosen = target("deepspeed")
    write_folder(with_hosts, chosen, chosen.write(with_hosts), tmp_path / "out")
    script = (tmp_path / "out" / START_FILE).read_text().replace("exec torchrun", "echo")
    (tmp_path / "out" / START_FILE).write_text(script)
    words = subprocess.run(["bash", tmp_path / "out" / START_FILE], capture_output=True, text=True, check=True).stdout
    assert "--node-rank 1 --master-addr zz.cluster" in words
    assert (tmp_path / "out" / "hostfile").read_text() == f"zz.cluster slots=8\n{here}.cluster slots=8\n"


def test_no_target_is_answered_with_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export"]) == 2
    assert "|".join(names()) in capsys.readouterr().err


SAYS = {name: set(KINDS) for name in TARGETS} | {
    "accelerate": {"context", "zero3"},
    "deepspeed": {"uneven stages", "experts", "zero3"},
    "hf": {"context", "zero3"},
    "lightning": {"zero3"},
}


@pytest.mark.parametrize("name", TARGETS)
def test_at_least_five_plans_of_every_kind_that_a_target_can_say_are_tried(name: str) -> None:
    """The tests of a target let its own parser read each plan that it says, or those of SCHEDULED."""
    said = [plan.layout for plan in map(plan_of, PLANS) if not list(target(name).cannot(plan.job, plan.layout))]
    assert len(said) >= 5
    assert {kind for kind, has in KINDS.items() if any(map(has, said))} == SAYS[name]


def test_every_plan_is_said_or_refused_by_every_target() -> None:
    for name in PLANNED:
        chosen = target(name)
        for plan in map(plan_of, PLANS):
            problems = list(chosen.cannot(plan.job, plan.layout))
            assert problems or json.dumps(chosen.write(plan).files)
            assert all("set " in problem for problem in problems), problems


@pytest.mark.parametrize("tool", ["deepspeed", "accelerate", "hf", "lightning"])
def test_a_deepspeed_configuration_of_the_users_is_in_every_export_that_deepspeed_trains(
    tool: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, words = tmp_path / "mine.json", [*DGX, "model=gpt3_1b3", "stack=deepspeed", "layout.pp=1", "layout.tp=1"]
    file.write_text(json.dumps({"zero_optimization": {"reduce_bucket_size": 1234}, "csv_monitor": {"enabled": True}}))
    assert main(["export", *words, f"train.ds_config={file}", f"to={tool}", "output=json"]) == 0
    config = json.loads(json.loads(capsys.readouterr().out)["files"]["ds_config.json"])
    assert config["zero_optimization"]["reduce_bucket_size"] == 1234 and config["csv_monitor"] == {"enabled": True}
    file.write_text('{"train_micro_batch_size_per_gpu": 999}')
    assert main(["export", *words, f"train.ds_config={file}", f"to={tool}"]) == 2
    assert "train_micro_batch_size_per_gpu is 999 there" in capsys.readouterr().err


@pytest.mark.parametrize("tool", ["accelerate", "megatron"])
def test_a_deepspeed_configuration_is_refused_where_no_file_would_have_it(
    tool: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.json").write_text("{}")
    words = [*DGX, "model=gpt3_1b3", f"train.ds_config={tmp_path}/mine.json", f"to={tool}", f"out={tmp_path}/out"]
    assert main(["export", *words]) == 2
    assert "train.ds_config=" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package with targets of its own, as pip installs one."""
    info = tmp_path / "site_exports-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: site-exports\nVersion: 1\n")
    points = {"theirs": "site_exports:THEIRS", "number": "site_exports:NUMBER", "gone": "site_exports.gone:TARGET"}
    lines = [f"{name} = {value}" for name, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[nvlink_launcher.exports]", *lines]) + "\n")
    (tmp_path / "site_exports.py").write_text(
        "from launcher.export.target import Export, Target\n"
        "def write(plan):\n"
        "    return Export('job.txt', {'job.txt': f'tp={plan.layout.tp}\\n'}, ('all but tp',), 'start job.txt')\n"
        "def cannot(job, layout):\n"
        "    if layout.pp > 1:\n"
        "        yield 'it has no pipeline: set layout.pp=1'\n"
        "THEIRS = Target(name='theirs', tool='Their tool', sources=('https://example.org',),\n"
        "                write=write, cannot=cannot)\n"
        "NUMBER = 7\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("site_exports", None)


def test_another_package_brings_a_target(plugin: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "theirs" in names()
    words = ["cluster=dgx_a100_80g", "model=gpt3_1b3", "layout.tp=2"]
    assert main(["export", *words, "to=theirs"]) == 0
    assert capsys.readouterr().out == "tp=2\n"
    assert main(["export", *words, "to=theirs", f"out={tmp_path / 'out'}"]) == 0
    assert "all but tp" in (tmp_path / "out" / "README.md").read_text()
    capsys.readouterr()
    assert main(["export", *words, "layout.pp=2", "to=theirs"]) == 2
    assert "it has no pipeline: set layout.pp=1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"),
    [("number", "is no launcher.export.target.Target"), ("gone", "cannot be imported (ModuleNotFoundError")],
)
def test_a_target_of_another_package_that_is_none_is_one_message(
    name: str, said: str, plugin: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "cluster=dgx_a100_80g", "model=gpt3_1b3", f"to={name}"]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
