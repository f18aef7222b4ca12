"""Overrides reach the frozen values; what is taken verbatim survives Hydra's grammar."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from launcher.cli import _flags_first
from launcher.config.compose import compose_config, load, sweep
from launcher.errors import InputError


@pytest.mark.parametrize(
    "text",
    [
        "tp=4,pp=16",
        "a b",
        "it's",
        "back\\slash",
        "ends\\",
        'double"quote',
        "$(touch x)",
        "${model.name}",
        "[x",
        "a\nb",
        "{",
        "#",
    ],
)
@pytest.mark.parametrize("key", ["why_not", "run_dir", "script"])
def test_paths_and_questions_are_taken_as_they_stand(key: str, text: str) -> None:
    assert compose_config([f"{key}={text}"])[key] == text


def test_null_still_means_nothing() -> None:
    assert compose_config(["run_dir=null"])["run_dir"] is None


def test_a_sweep_takes_every_combination_and_keeps_verbatim_commas() -> None:
    combinations = sweep(["layout.tp=1,2", "cluster=cpu,dgx_a100_80g", "run_dir=a,b"])
    assert len(combinations) == 4
    assert {load(words).config["run_dir"] for words in combinations} == {"a,b"}


def test_multirun_may_stand_anywhere() -> None:
    assert _flags_first(["plan", "a=1,2", "-m", "b=3"]) == ["plan", "-m", "a=1,2", "b=3"]


def test_a_user_folder_adds_its_own_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "it's here, [mine]" / "configs" / "cluster"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("defaults:\n  - dgx_a100_80g\n  - _self_\nname: mine\nnum_nodes: 3\n")
    monkeypatch.chdir(folder.parent.parent)
    cluster = load(["cluster=mine"]).job.cluster
    assert (cluster.name, cluster.num_nodes, cluster.node.num_gpus) == ("mine", 3, 8)


def test_a_user_file_with_an_unknown_key_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "configs" / "cluster"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("defaults:\n  - dgx_a100_80g\n  - _self_\nnodes_per_leef: 3\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"nodes_per_leef.*nodes_per_leaf"):
        load(["cluster=mine"])


def test_a_smaller_node_clips_its_domains() -> None:
    node = load(["cluster=dgx_a100_80g", "cluster.node.num_gpus=4"]).job.cluster.node
    assert node.domains == ((0, 1, 2, 3),)


def test_pinning_any_degree_leaves_the_default_layout_of_the_cluster() -> None:
    assert load([]).request.pinned() == {"tp": 2, "pp": 2, "dp": 2}
    assert load(["layout.tp=1"]).request.pinned() == {"tp": 1}


def test_plan_stays_a_function_beside_the_subpackage_of_its_name() -> None:
    import_module("launcher.planner.build")
    from launcher import plan

    assert plan(["model=gpt_tiny"]).layout.world_size == 8
