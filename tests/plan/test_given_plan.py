"""A plan is a file that can be used: saved, taken as it is, refused with reasons, and never changed by a run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import launcher
from launcher.cli import main
from launcher.commands.given_plan import read_given
from launcher.config.compose import load
from launcher.errors import InputError
from launcher.planner.given import read_checked
from launcher.planner.record import PLAN_VERSION, Plan, read_plan, write_plan
from launcher.run.folder import RunFolder

DGX = ["cluster=dgx_a100_80g", "cluster.num_nodes=2", "model=gpt3_1b3", "train.global_batch=64"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan as `launcher plan save=` writes it: another layout than the search would choose."""
    file = tmp_path_factory.mktemp("saved") / "best.json"
    assert (
        main(["plan", *DGX, "layout.pp=2", "layout.tp=2", "layout.zero_stage=1", "train.steps=30", f"save={file}"]) == 0
    )
    return file


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(tmp_path)
    yield
    os.chdir(before)


@pytest.fixture(scope="module")
def saved_here(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of a plan of this machine."""
    file = tmp_path_factory.mktemp("here") / "best.json"
    assert main(["plan", *HERE, f"save={file}"]) == 0
    return file.read_text()


HERE = ["cluster=cpu", "cluster.node.num_gpus=2", "model=gpt_tiny", "train.global_batch=8", "layout.pp=2"]
BY_HAND: dict[str, tuple[str, str, object, str]] = {
    "a batch that does not divide": ("training", "global_batch", 9, "train.global_batch=9 does not divide"),
    "layers that are not the model's": ("layout", "layer_split", [1, 2], "layout.layer_split=[1, 2] must give"),
    "an optimizer that is none": ("training", "optimizer", "adagrad", "train.optimizer = 'adagrad' is not one of"),
    "a schedule that is none": ("layout", "schedule", "foo", "layout.schedule='foo' is unknown"),
    "steps below nothing": ("train", "steps", -4, "train.steps = -4 must be a whole number, at least 1"),
    "a rate that is no number": ("train", "lr", float("nan"), "train.lr = nan must be a number, at least 0"),
    "a vocabulary below nothing": ("model", "vocab", -3, "model.vocab = -3 must be a whole number"),
}


@pytest.mark.parametrize("edit", BY_HAND)
def test_a_plan_that_was_edited_into_one_that_no_search_gives_is_refused(
    edit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *HERE, "save=best.json"]) == 0
    section, key, value, said = BY_HAND[edit]
    data = json.loads(Path("best.json").read_text())
    data[section][key] = value
    Path("best.json").write_text(json.dumps(data))
    for command in (
        ["plan"],
        ["run", "dry_run=true"],
        ["submit", "dry_run=true"],
        ["export", "to=torchrun"],
        ["report"],
    ):
        capsys.readouterr()
        assert main([*command, "plan=best.json"]) == 2
        assert f"best.json is not a plan of this launcher ({said}" in capsys.readouterr().err


BETWEEN_KEYS: dict[str, tuple[dict[str, object], str]] = {
    "model.heads": ({"heads": 3}, "model.heads=3 must divide by model.kv_heads=4: change one of them"),
    "model.dense_layers": ({"dense_layers": 1}, "model.dense_layers=1 is about a mixture of experts"),
    "model.head_dim": ({"head_dim": 31, "positions": "rotary"}, "model.head_dim=31 must be even with rotary positions"),
    "cluster.num_nodes": ({"num_nodes": 2}, "cluster.num_nodes=2 needs a network between the nodes"),
    "cluster.rails": ({"rails": 2}, "cluster.rails=2 does not divide the 0 NICs of a node of cpu"),
    "cluster.nvlink_nodes": ({"nvlink_nodes": 2}, "cluster.nvlink_nodes=2 joins nodes that are one NVSwitch domain"),
    "cluster.measured": ({"checkpoint_read": {"x8": 1e9}}, "cluster.measured.checkpoint_read_gbytes_per_s has x8"),
    "cluster.node.domains": ({"domains": [[0, 1, 2]]}, "cluster.node.domains is about GPUs that the node lacks"),
    "cluster.node.domains of too few": ({"domains": [[0]]}, "cluster.node.domains=[[0]] must name each of the 2 GPUs"),
    "cluster.node.nvlinks": ({"nvlinks": [[0, 1], [1, 0]]}, "cluster.node.nvlink=none does not wire GPUs"),
    "cluster.node.nic_of_gpu": ({"nic_of_gpu": [0, 1]}, "cluster.node.nic_of_gpu=[0, 1] names NIC 1"),
    "stack.dp_messages": ({"dp_messages": "loud"}, "stack.dp_messages = 'loud' is not one of flat"),
    "asked.memory_margin": ({"memory_margin": 2}, "layout.memory_margin = 2"),
}  # fmt: skip


@pytest.mark.parametrize("edit", BETWEEN_KEYS)
def test_the_rules_between_keys_hold_for_a_plan_file_too(edit: str, saved_here: str, tmp_path: Path) -> None:
    """Each of these is refused among overrides by its own message; a file was believed."""
    *groups, _ = edit.split(" ")[0].split(".")
    data, (changed, said) = json.loads(saved_here), BETWEEN_KEYS[edit]
    inner = data
    for group in (*groups, *(["measured"] if edit == "cluster.measured" else [])):
        inner = inner[group]
    inner.update(changed)
    file = tmp_path / "edited.json"
    file.write_text(json.dumps(data))
    for read in (read_checked, launcher.Plan.load):
        with pytest.raises(InputError) as caught:
            read(file)
        assert str(caught.value).startswith(f"{file} is not a plan of this launcher ({said}")
    with pytest.raises(InputError):
        read_given(str(file), load([f"plan={file}"]), [f"plan={file}"])


@pytest.mark.parametrize(
    "word", ["train.dtype=fp16", "train.dropout=0.1", "stack=megatron_lm", "stack.fused_loss=true"]
)
def test_a_plan_that_the_recipe_cannot_train_is_refused_as_its_words_are(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without this a dropout was left out silently, and fp16 was an error in every rank."""
    assert main(["plan", *HERE, word, "save=best.json"]) == 0
    capsys.readouterr()
    assert main(["run", *HERE, word, "dry_run=true"]) == 2
    said = capsys.readouterr().err
    for command in ("run", "submit"):
        assert main([command, "plan=best.json", "dry_run=true"]) == 2
        assert capsys.readouterr().err == said
    assert main(["run", "plan=best.json", "script=a.py", "dry_run=true"]) == 2  # there is no such file
    assert "a.py" in capsys.readouterr().err


def test_a_plan_for_several_nodes_is_not_advised_to_contradict_itself(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", f"plan={saved}", "dry_run=true"]) == 2
    assert "plan again with cluster.num_nodes=1" in capsys.readouterr().err


def given(saved: Path, *words: str) -> Plan:
    words = (f"plan={saved}", *words)
    return read_given(str(saved), load(words), words)


@pytest.mark.parametrize("recipe", ["gemm", "mine", "coldstart", "gpt"])
def test_the_recipe_of_a_plan_runs_and_not_the_default_one(recipe: str) -> None:
    """A plan of the recipe gemm, or of one of the user's own, was run as gpt."""
    assert main(["new", "recipe", "mine"]) == 0
    assert main(["plan", *HERE, f"recipe={recipe}", "train.steps=3", "save=best.json"]) == 0
    made = read_plan(Path("best.json"))
    assert made.options.recipe.name == recipe
    assert given(Path("best.json")).options == made.options
    more = given(Path("best.json"), "train.steps=5").options
    assert more == replace(made.options, train=replace(made.options.train, steps=5))
    assert given(Path("best.json"), "recipe=memory").options.recipe.name == "memory"


def test_a_page_is_made_of_a_plan_file_as_it_is_named(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([str(saved)], [f"plan={saved}"]):
        assert main(["report", *words, "file=page.html"]) == 0
        assert "gpt3_1b3 on dgx_a100_80g" in Path("page.html").read_text()
    assert main(["report", str(saved), "layout.tp=4"]) == 2
    assert "layout.tp=4 contradicts the plan" in capsys.readouterr().err


def test_a_plan_is_read_as_it_was_written(saved: Path) -> None:
    plan = read_plan(saved)
    assert (plan.layout.tp, plan.layout.pp, plan.options.train.steps) == (2, 2, 30)
    assert (plan.options.asked.tp, plan.options.asked.micro_batch) == (2, None)
    again = saved.with_name("again.json")
    write_plan(plan, again)
    assert again.read_bytes() == saved.read_bytes()


def test_overrides_that_agree_with_a_plan_may_be_given_with_it(saved: Path) -> None:
    assert given(saved) == read_plan(saved)
    agreeing = [
        *DGX,
        "layout.pp=2",
        "layout.tp=auto",
        "cluster.node.nic_gbps=200",
        "layout.shard_group=all",
        "train.dtype=auto",
    ]
    assert given(saved, *agreeing) == read_plan(saved)
    for alone in ("cluster.num_nodes=2", "launch.nnodes=2", "layout.risk=0.05", "train.offload_optimizer=false"):
        assert given(saved, alone) == read_plan(saved)  # without the name of the cluster, too


CONTRADICTIONS = {
    "another number of nodes": (["cluster=dgx_a100_80g", "cluster.num_nodes=4"], r"cluster\.num_nodes=4 .* has 2:"),
    "another cluster": (["cluster=dgx_h100"], r"cluster=dgx_h100 differs from the plan in name \(dgx_a100_80g"),
    "another model": (["model=gpt3_175b"], r"model=gpt3_175b .* hidden"),
    "another layout": (["layout.pp=4"], r"layout\.pp=4 contradicts the plan, which has 2: leave it out, or plan again"),
    "the default, where the plan has another": (["train.global_batch=16"], r"train\.global_batch=16 .* has 64"),
    "another name of its key": (["train.offload_optimizer=true"], r"train\.offload_optimizer=true .* has false"),
    "another optimizer": (["train.optimizer=sgd"], r"train\.optimizer=sgd .* has adamw"),
    "another software": (["stack=megatron_lm"], r"stack=megatron_lm differs from the plan"),
    "torchrun's name of it": (["launch.nproc_per_node=4"], r"nproc_per_node=4 contradicts the plan, which has 8"),
    "a number of nodes without a cluster": (["cluster.num_nodes=4"], r"cluster\.num_nodes=4 .* has 2:"),
    "torchrun's number of nodes": (["launch.nnodes=1"], r"launch\.nnodes=1 .* has 2:"),
    "a limit that it was not searched within": (["layout.max_memory_gib=1"], r"max_memory_gib=1 .* has null:"),
    "another risk": (["layout.risk=0.5"], r"layout\.risk=0\.5 .* has 0\.05:"),
    "a unit of another field": (["cluster.node.gpu.memory_gib=40"], r"memory_gib=40 .* has 80:"),
    "a unit": (["cluster.node.nic_gbps=50"], r"nic_gbps=50 contradicts the plan, which has 200:"),
}


@pytest.mark.parametrize("words,message", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_what_contradicts_a_plan_is_refused_with_both_values(words: list[str], message: str, saved: Path) -> None:
    with pytest.raises(InputError, match=message):
        given(saved, *words)


def test_every_contradiction_is_named(saved: Path) -> None:
    with pytest.raises(InputError) as caught:
        given(saved, "layout.pp=4", "model.layers=3", "train.steps=7")
    assert [problem.partition("=")[0] for problem in caught.value.problems] == ["layout.pp", "model.layers"]


def test_options_of_the_run_change_the_copy_and_not_the_file(saved: Path) -> None:
    before = saved.read_bytes()
    plan = given(saved, "train.steps=7", "train.lr=0.5", "tracking=none", "recipe.preload=[json]", "tokens=1e9")
    planned = read_plan(saved)
    assert replace(plan, options=planned.options) == planned
    assert (plan.options.train.steps, plan.options.train.lr, plan.options.train.seed) == (7, 0.5, 1234)
    assert (plan.options.tracking.kind, plan.options.recipe.preload, plan.options.tokens) == ("none", ("json",), 1e9)
    assert saved.read_bytes() == before


def document(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main(list(words)) == 0
    return json.loads(capsys.readouterr().out)


def test_a_plan_is_explained_exported_and_reported_from_its_file(
    saved: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = document(capsys, "plan", f"plan={saved}", "output=json")
    [one] = found["plans"]
    assert (one["layout"]["pp"], one["step_time_s"]) == (2, read_plan(saved).estimate["step_time_s"])
    assert main(["plan", f"plan={saved}"]) == 0
    assert "gpt3_1b3 (1.3B parameters) on dgx_a100_80g: 16 GPUs, 2 nodes" in capsys.readouterr().out
    assert main(["export", f"plan={saved}", "to=megatron"]) == 0
    assert "--pipeline-model-parallel-size 2" in capsys.readouterr().out.replace("\n", " ")
    assert main(["report", f"plan={saved}", "file=page.html"]) == 0
    assert "tp2 pp2 dp4" in (tmp_path / "page.html").read_text()


def test_a_folder_is_submitted_with_the_plan_that_is_in_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["plan", *DGX, "layout.pp=2", "layout.tp=4", "run_dir=x"]) == 0
    folder = RunFolder(tmp_path / "x")
    before = folder.plan.read_bytes()
    assert main(["submit", "run_dir=x", "dry_run=true", "launch.time=1:00:00"]) == 0
    assert "tp4 pp2 dp2" in capsys.readouterr().err
    assert folder.plan.read_bytes() == before
    assert not folder.plan_of_start.exists()
    assert main(["submit", "run_dir=x", "dry_run=true", "layout.pp=1"]) == 2
    assert "layout.pp=1 contradicts the plan, which has 2" in capsys.readouterr().err
    assert main(["submit", "run_dir=x", "dry_run=true", "train.steps=7"]) == 0
    assert folder.plan.read_bytes() == before
    assert read_plan(folder.present_plan).options.train.steps == 7


def test_a_folder_with_another_plan_than_the_given_one_is_refused(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *DGX, "layout.pp=4", "run_dir=x"]) == 0
    assert main(["submit", "run_dir=x", f"plan={saved}", "dry_run=true"]) == 2
    assert "differs from" in capsys.readouterr().err
    assert main(["submit", "run_dir=y", f"plan={saved}", "dry_run=true"]) == 0
    assert read_plan(RunFolder(Path("y")).plan) == read_plan(saved)


def test_a_plan_of_another_version_is_refused_with_what_to_do(saved: Path, tmp_path: Path) -> None:
    data = json.loads(saved.read_text())
    file = tmp_path / "old.json"
    for version in (1, PLAN_VERSION + 1, None):
        file.write_text(json.dumps({**data, "version": version}))
        with pytest.raises(InputError, match=rf"old\.json has version {version}.*reads version {PLAN_VERSION}: plan"):
            read_plan(file)


def test_a_plan_of_version_4_is_refused_by_its_version_whichever_keys_it_lacks(saved: Path, tmp_path: Path) -> None:
    """Some of them were written before `nvlinks`, `chain` and keys of the stack were added."""
    data = json.loads(saved.read_text()) | {"version": 4}
    del data["cluster"]["node"]["nvlinks"], data["stack"]["dp_messages"]
    file = tmp_path / "old.json"
    file.write_text(json.dumps(data))
    with pytest.raises(InputError, match=rf"version 4, but this launcher reads version {PLAN_VERSION}: plan") as caught:
        read_plan(file)
    assert len(caught.value.problems) == 1


EDITS: dict[str, Any] = {
    "a key too many": lambda d: {**d, "config": {}},
    "a key too few": lambda d: {k: v for k, v in d.items() if k != "stack"},
    "a wrong type": lambda d: {**d, "layout": {**d["layout"], "tp": "two"}},
    "a recipe that does not exist": lambda d: {**d, "recipe": {**d["recipe"], "name": "nope"}},
    "a layout that is not that of its placement": lambda d: {
        **d, "placement": {**d["placement"], "ranks_per_node": 3}
    },
    "more ranks than GPUs": lambda d: {**d, "layout": {**d["layout"], "dp": 400}},
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_a_plan_that_was_changed_by_hand_is_refused_in_one_message(edit: Any, saved: Path, tmp_path: Path) -> None:
    file = tmp_path / "edited.json"
    file.write_text(json.dumps(edit(json.loads(saved.read_text()))))
    with pytest.raises(InputError, match=r"edited\.json is not a plan of this launcher .*: plan again") as caught:
        read_plan(file)
    assert len(caught.value.problems) == 1


def test_the_document_says_what_it_is_a_plan_of(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "plan", *DGX, "top=1", "output=json")
    assert (found["cluster"]["name"], found["cluster"]["num_nodes"]) == ("dgx_a100_80g", 2)
    assert (found["model"]["name"], found["stack"]["name"]) == ("gpt3_1b3", "launcher")
    assert found["batch"] == {"global_batch": 64, "seq_len": 2048, "tokens": 64 * 2048, "dtype": "bf16"}
    assert found["version"] == "0.1.0"
