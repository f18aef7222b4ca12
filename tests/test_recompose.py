"""Settings composed again are those of a whole composition, errors included, and take a hundredth of the time."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from launcher.config.compose import load
from launcher.config.recompose import load_again
from launcher.errors import InputError

SHAPE = ["model=gpt", "model.hidden=512", "model.layers=4", "model.heads=8"]
CASES = [
    [],
    ["cluster=dgx_a100_80g", "cluster.num_nodes=3", "cluster.node.nic_gbps=12.5", "layout.tp=4", "train.dtype=fp16"],
    [*SHAPE, "layout.sequence_parallel=true", "train.dropout=0.1", "train.attention=Math"],
    [*SHAPE, "layout.layer_split=[1,1,2]", "layout.pp=3"],
    [*SHAPE, "run_dir=null", "train.lr=1e-3", "script=a b"],
    ["model.name=TRUE", "layout.recompute=NaN"],
    ["layout.tp=2", "layout.tp=4"],
    # wrong: a missing value, keys that do not exist, a group as a value, a choice that does not exist, given twice
    ["model=gpt"],
    ["layout.tpp=2", "layout.tp.x=2"],
    ["layout=2"],
    ["cluster.node=7"],
    ["model=gpt5"],
    ["model=gpt", "model=gpt_tiny"],
    ["layout.tp=0", "train.attention=flash3"],
    ["layout.tp"],
]


@pytest.mark.parametrize("overrides", CASES, ids=" ".join)
def test_composing_again_gives_the_same(overrides: list[str]) -> None:
    try:
        expected = load(overrides)
    except InputError as error:
        for _ in range(2):
            with pytest.raises(InputError) as caught:
                load_again(overrides)
            assert caught.value.problems == error.problems
        return
    assert [load_again(overrides) for _ in range(2)] == [expected] * 2


def test_a_file_that_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "configs" / "cluster" / "mine.yaml"
    file.parent.mkdir(parents=True)
    for nodes in (3, 5):
        file.write_text(f"defaults:\n  - dgx_a100_80g\n  - _self_\nname: mine\nnum_nodes: {nodes}\n")
        os.utime(file, ns=(nodes, nodes))
        assert load_again(["cluster=mine"]).job.cluster.num_nodes == nodes


def test_a_value_that_others_decide_goes_through_the_whole_composition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "configs" / "model" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("defaults:\n  - gpt_tiny\n  - _self_\nname: mine\nkv_heads: ${model.heads}\n")
    assert load_again(["model=mine", "model.heads=8"]).job.model.kv_heads == 8


def test_the_second_time_is_much_sooner() -> None:
    overrides = ["cluster=dgx_a100_80g", *SHAPE]
    load_again(overrides)

    def seconds(read: object) -> float:
        started = time.process_time()
        for _ in range(3):
            read(overrides)
        return time.process_time() - started

    assert seconds(load_again) < 0.2 * seconds(load)
