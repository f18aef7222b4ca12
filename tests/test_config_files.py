"""A user's own configuration files: which one counts, and what is refused, with file and line."""

from __future__ import annotations

import re
import resource
import time
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.config.compose import load
from launcher.errors import InputError
from launcher.resources import resource as shipped

TYPOS = {
    "cluster": ("defaults: [cpu, _self_]\nnodes_per_leef: 3", "cluster.nodes_per_leaf"),
    "cluster inside": ("defaults: [cpu, _self_]\nnode: {cores: 4, numgpus: 3}", "cluster.node.num_gpus"),
    "model": ("defaults: [gpt_tiny, _self_]\nseqlen: 64", "model.seq_len"),
    "layout": ("micro_batches: 2", "layout.micro_batch"),
    "train": ("chekpoint_every: 100", "train.checkpoint_every"),
    "recipe": ("defaults: [gpt, _self_]\npreloads: [os]", "recipe.preload"),
    "launch": ("defaults: [local, _self_]\nmax_restart: 1", "launch.max_restarts"),
    "launch of Slurm": ("defaults: [slurm, _self_]\npartitoin: a100", "launch.partition"),
    "tracking": ("kind: none\nprojekt: x", "tracking.project"),
}
NOT_YAML = {
    "no colon": (b"name mine\nnum_nodes 3\n", 1, "group of keys"),
    "a tab": (b"name: mine\nnode:\n\tnum_gpus: 3\n", 3, "not YAML"),
    "a duplicate key": (b"name: mine\nnum_nodes: 1\nnum_nodes: 2\n", 3, "duplicate key"),
    "not UTF-8": (b"name: mine\n# caf\xe9\n", 2, "UTF-8"),
    "a control character": (b"name: mi\x01ne\n", 1, "not YAML"),
    "a list": (b"- name: mine\n", 1, "group of keys"),
    "a word": (b"mine\n", 1, "group of keys"),
    "two documents": (b"name: a\n---\nname: b\n", 2, "another document"),
    "defaults that are no list": (b"name: mine\ndefaults: cpu\n", 2, "defaults must be a list"),
    "an entry of defaults that is a number": (b"defaults: [3]\n", 1, "entry of defaults"),
    "an entry of defaults with two keys": (b"defaults: [{cpu: a, gpu: b}]\n", 1, "entry of defaults"),
    "the base file of old": (b"defaults: [/base/cluster@_here_, _self_]\n", 1, "take /base/cluster@_here_ out"),
    "its own name in its defaults": (b"# x\ndefaults: [mine]\n", 2, "rename it"),
    "an alias bomb": (b"a0: &a0 [x,x]\n" + b"".join(b"a%d: &a%d [*a%d,*a%d,*a%d]\n" % (i, i, i - 1, i - 1, i - 1)
                                                      for i in range(1, 40)), 9, "values"),
    "an alias of what it is in": (b"a: &a [*a]\n", 1, "refers to a group"),
    "an alias of nothing": (b"a: *b\n", 1, "undefined alias"),
    "deep nesting": (b"name: " + b"[" * 1000 + b"]" * 1000 + b"\n", 1, "nested"),
    "deep nesting in lines": (b"".join(b" " * i + b"a:\n" for i in range(1000)), 21, "nested"),
    "a file without end": (b"name: x\n" * 200_000, 1, "larger than 1 MiB"),
    "a tag": (b"name: !!python/object/apply:os.system [ls]\n", 1, "not YAML"),
}  # fmt: skip


def own(folder: Path, group: str, text: str | bytes, name: str = "mine") -> Path:
    file = folder / "configs" / group / f"{name}.yaml"
    file.parent.mkdir(parents=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


@pytest.mark.parametrize("case", TYPOS)
def test_a_typo_in_a_file_of_any_group_is_refused_with_the_nearest_key(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text, nearest = TYPOS[case]
    group = case.split()[0]
    file = own(tmp_path, group, text)
    assert main(["plan", f"{group}=mine"]) == 2
    said = capsys.readouterr().err
    assert "is not a known key: did you mean" in said and nearest in said
    assert f"({file}, line {len(text.splitlines())})" in said


@pytest.mark.parametrize("case", NOT_YAML)
def test_a_file_that_does_not_parse_is_refused_with_file_and_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data, line, words = NOT_YAML[case]
    file = own(tmp_path, "cluster", data)
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert main(["plan", "cluster=mine"]) == 2
    assert time.process_time() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    [said] = capsys.readouterr().err.splitlines()
    assert said.startswith(f"launcher: {file}, line {line}: ") and words in said


VALUES = {
    "a number that is none": "hidden: !!int abc",
    "half a number": "hidden: 0x_",
    "a set": "hidden: !!set {a, b}",
    "a key that is nothing": "null: 3",
    "half an interpolation": "hidden: ${",
}


@pytest.mark.parametrize("case", VALUES)
def test_a_value_that_yaml_cannot_make_is_refused_with_its_file(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = own(tmp_path, "model", f"defaults: [gpt_tiny, _self_]\n{VALUES[case]}\n")
    with pytest.raises(InputError, match=re.escape(str(file))) as caught:
        load(["model=mine"])
    assert "\n" not in caught.value.problems[0]


@pytest.mark.parametrize("group", ["model.", "."])
def test_values_that_double_in_a_chain_are_refused(group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = ["k0: xxxxxxxxxx", *(f"k{i}: ${{{group}k{i - 1}}}${{{group}k{i - 1}}}" for i in range(1, 60))]
    own(tmp_path, "model", "defaults: [gpt_tiny, _self_]\n" + "\n".join(lines))
    with pytest.raises(InputError, match="longer than"):
        load(["model=mine"])


def test_folders_that_lead_nowhere_or_round_and_round_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = own(tmp_path, "cluster", "defaults: [/cluster/cpu@_here_, _self_]\nname: inner\n").parent
    (folder / "site").mkdir()
    (folder / "mine.yaml").rename(folder / "site" / "inner.yaml")
    (folder / "nowhere.yaml").symlink_to("nothing")
    (folder / "loop").symlink_to(".")
    (folder / "folder.yaml").mkdir()
    assert load(["cluster=site/inner"]).job.cluster.name == "inner"
    with pytest.raises(InputError, match="nowhere is not a known cluster"):
        load(["cluster=nowhere"])


def test_an_empty_file_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own(tmp_path, "train", "# nothing yet\n")
    assert load(["train=mine"]).options.train == load([]).options.train


def test_defaults_that_go_round_in_a_circle_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own(tmp_path, "model", "defaults: [other]\n")
    (tmp_path / "configs" / "model" / "other.yaml").write_text("defaults: [mine]\n")
    with pytest.raises(InputError, match="cycle") as caught:
        load(["model=mine"])
    assert len(caught.value.problems) == 1


def test_a_missing_name_in_defaults_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own(tmp_path, "model", "defaults: [gtp_tiny]\n")
    with pytest.raises(InputError, match="gtp_tiny") as caught:
        load(["model=mine"])
    assert "\n" not in caught.value.problems[0]


def test_a_user_s_file_of_a_shipped_name_wins_and_the_plan_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own(
        tmp_path,
        "gpu",
        "name: mine\nkind: cuda\nmemory_gib: 7\nhbm_gbytes_per_s: 100\nnum_sms: 3\n"
        "nvlink_gbytes_per_s: 5\npeak_tflops: {bf16: 9}\n",
        "a100_sxm_80g",
    )
    assert load(["cluster=dgx_a100_80g"]).job.cluster.node.gpu.memory_bytes == 7 * 2**30
    assert main(["plan", "cluster=dgx_a100_80g"]) == 0
    assert (
        "launcher: your configs/gpu/a100_sxm_80g.yaml is read instead of the launcher's own\n"
        in capsys.readouterr().err
    )
    assert main(["plan", "cluster=cpu"]) == 0
    assert "instead of" not in capsys.readouterr().err


def test_a_copy_of_a_shipped_file_is_not_worth_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a clone of the project, where the launcher is installed and not editable."""
    monkeypatch.chdir(tmp_path)
    own(tmp_path, "gpu", (shipped("configs") / "gpu" / "a100_sxm_80g.yaml").read_text(), "a100_sxm_80g")
    assert main(["plan", "cluster=dgx_a100_80g"]) == 0
    assert "instead of" not in capsys.readouterr().err


def test_a_configuration_of_another_program_s_name_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own(tmp_path, "dataset", "whatever: 3\n")
    (tmp_path / "configs" / "config.yaml").write_text("defaults: [dataset: mine]\nlearning_rate: 3\n")
    assert load([]).job.model.name == "gpt_tiny"


def test_a_file_with_a_package_of_its_own_is_hydra_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own(tmp_path, "train", "# @package _global_\ntrain: {steps: 3}\ntop: 4\n")
    options = load(["train=mine"]).options
    assert (options.train.steps, options.top) == (3, 4)


def test_a_file_that_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = own(tmp_path, "cluster", "defaults: [dgx_a100_80g, _self_]\nnum_nodes: 3\n")
    assert load(["cluster=mine"]).job.cluster.num_nodes == 3
    file.write_text("defaults: [dgx_a100_80g, _self_]\nnum_nodes: 5\n")
    assert load(["cluster=mine"]).job.cluster.num_nodes == 5


def test_a_value_may_name_another_key_that_an_override_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own(tmp_path, "model", "defaults: [gpt_tiny, _self_]\nkv_heads: ${model.heads}\nvocab: ${model.seq_len}\n")
    model = load(["model=mine", "model.heads=8"]).job.model
    assert (model.kv_heads, model.vocab) == (8, model.seq_len)
    with pytest.raises(InputError, match="cannot be resolved"):
        load(["model=mine", "model.heads=${model.headz}"])
