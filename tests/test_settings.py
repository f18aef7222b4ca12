"""Overrides reach the frozen values; what is taken verbatim survives Hydra's grammar."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from launcher import Job, estimate
from launcher.cli import main
from launcher.config import compose
from launcher.config.compose import choices, compose_config, from_config, load, sweep
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
def test_paths_and_questions_are_taken_as_they_are(key: str, text: str) -> None:
    assert compose_config([f"{key}={text}"])[key] == text


def test_null_still_means_nothing() -> None:
    assert compose_config(["run_dir=null"])["run_dir"] is None


def test_a_sweep_takes_every_combination_and_keeps_verbatim_commas() -> None:
    combinations = sweep(["layout.tp=1,2", "cluster=cpu,dgx_a100_80g", "run_dir=a,b"])
    assert len(combinations) == 4
    assert {load(words).config["run_dir"] for words in combinations} == {"a,b"}


def test_multirun_may_be_anywhere_among_the_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "layout.tp=1,2", "-m", "layout.pp=1"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("layout.tp")


def test_a_user_folder_adds_its_own_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "it's here, [mine]" / "configs" / "cluster"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("defaults:\n  - dgx_a100_80g\n  - _self_\nname: mine\nnum_nodes: 3\n")
    monkeypatch.chdir(folder.parent.parent)
    cluster = load(["cluster=mine"]).job.cluster
    assert (cluster.name, cluster.num_nodes, cluster.node.num_gpus) == ("mine", 3, 8)


def test_a_user_file_with_an_unknown_key_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


ADDED = ["cluster.node.x", "model.x", "layout.x", "train.anything", "recipe.x", "launch.x", "tracking.x", "x"]


@pytest.mark.parametrize("sign", ["", "+", "++"])
@pytest.mark.parametrize("key", ADDED)
def test_an_override_cannot_add_a_key_to_any_group(key: str, sign: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"{key} is not a known key: ")):
        load([f"{sign}{key}=3"])


@pytest.mark.parametrize(
    ("typo", "nearest"),
    [
        ("train.chekpoint_every=100", "train.checkpoint_every"),
        ("cluster.node.numgpus=3", "cluster.node.num_gpus"),
        ("trian.dtype=bf16", "train.dtype"),
        ("model.micro_batch=3", "layout.micro_batch"),
        ("~train.stepss", "train.steps"),
        ("steps=3", "train.steps"),
    ],
)
def test_a_typo_in_an_override_is_refused_with_the_nearest_key(typo: str, nearest: str) -> None:
    with pytest.raises(InputError, match=f"did you mean .*{re.escape(nearest)}"):
        load([typo])


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "'3'", "true", "[3]", "{a: 3}", "null", "1e400"])
@pytest.mark.parametrize(
    "key", ["cluster.node.nic_gbps", "cluster.oversubscription", "model.norm_eps", "train.lr", "launch.grace_s"]
)
def test_what_is_no_number_is_refused_for_one(key: str, value: str) -> None:
    with pytest.raises(InputError, match=re.escape(key)):
        load([f"{key}={value}"])


def test_keys_of_slurm_are_there_with_slurm_alone() -> None:
    with pytest.raises(InputError, match=r"launch\.partition is a key with launch=slurm, and not where"):
        load(["launch.partition=a100"])
    assert load(["launch=slurm", "launch.partition=a100"]).options.slurm is not None
    assert load([]).options.slurm is None


def test_a_key_may_be_given_back_to_its_default() -> None:
    assert load(["train.steps=3", "~train.steps"]).options.train.steps == load([]).options.train.steps


def test_mappings_merge_and_take_new_keys() -> None:
    assert dict(load(["cluster.default_layout={dp: 4}"]).job.cluster.default_layout) == {"tp": 2, "pp": 2, "dp": 4}
    assert dict(load(["cluster.node.busbw_gbytes_per_s.nvlink=3"]).job.cluster.node.busbw_bytes_per_s) == {
        "nvlink": 3e9
    }


def test_memory_in_two_units_is_refused() -> None:
    with pytest.raises(InputError, match="memory_mib=81920 and memory_gib=40"):
        load(["cluster=dgx_a100_80g", "cluster.node.gpu.memory_gib=40"])
    gpu = load(
        ["cluster=dgx_a100_80g", "cluster.node.gpu.memory_gib=40", "cluster.node.gpu.memory_mib=null"]
    ).job.cluster.node.gpu
    assert gpu.memory_bytes == 40 * 2**30


def test_the_whole_configuration_as_data_gives_the_same_settings() -> None:
    for words in ([], ["cluster=dgx_a100_80g", "launch=slurm", "train.steps=7"], ["recipe=gemm", "tracking=none"]):
        settings = load(words)
        again = from_config(settings.config)
        assert (again.options, again.request) == (settings.options, settings.request)


def test_every_group_can_be_swept_by_name_pattern_and_by_range() -> None:
    names = [words[0].partition("=")[2] for words in sweep(["model=glob(gpt3_*)", "layout.tp=1"])]
    assert names == [name for name in choices()["model"] if name.startswith("gpt3_")]
    assert [words[0] for words in sweep(["layout.tp=range(1,4)"])] == ["layout.tp=1", "layout.tp=2", "layout.tp=3"]
    assert len(sweep(["layout.tp=choice(1,2)", "cluster=cpu,dgx_h100", "sizes=8,16"])) == 4
    with pytest.raises(InputError, match="matches nothing"):
        sweep(["model=glob(nothing*)"])
    with pytest.raises(InputError, match="is not a list of values"):
        sweep(["train.lr=interval(1,2)"])


def test_a_pattern_of_models_is_planned_with_m(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-m", "model=glob(gpt3_*5*m)", "cluster=dgx_a100_80g", "train.global_batch=64"]) == 0
    out = capsys.readouterr().out
    assert "gpt3_125m" in out and "gpt3_350m" in out and "gpt3_760m" not in out


def test_plan_is_a_function_and_the_planner_a_package() -> None:
    import launcher.planner as p
    from launcher import plan

    assert plan(["model=gpt_tiny"]).layout.world_size == 8
    assert p.Plan.__name__ == "Plan"
    with pytest.raises(ModuleNotFoundError):
        import_module("launcher.plan")


JOB = ["cluster=dgx_a100_80g", "cluster.num_nodes=2", "model=gpt3_1b3", "train.global_batch=64"]


def test_a_job_estimates_searches_and_plans() -> None:
    job = Job.from_overrides([*JOB, "layout.tp=8"])
    assert job.estimate() == estimate([*JOB, "layout.tp=8"])
    found = job.search(top=3)
    assert [candidate.layout.tp for candidate in found.candidates] == [8, 8, 8]
    assert job.plan().layout == found.best.layout
    assert job.estimate(found.best.layout) == found.best.estimate


def test_a_job_with_other_values_is_the_job_of_these_overrides() -> None:
    job = Job.from_overrides([*JOB, "layout.tp=8"])
    for words in (
        ["layout.tp=4"],
        ["model=gpt3_350m", "train.dtype=fp16"],
        ["cluster=dgx_h100", "cluster.num_nodes=1"],
    ):
        kept = [w for w in job.overrides if w.partition("=")[0] not in {word.partition("=")[0] for word in words}]
        assert job.with_(*words).settings == load([*kept, *words])
    assert job.settings.request.tp == 8
    with pytest.raises(InputError, match=r"layout\.tp"):
        job.with_("layout.tpp=3")


def test_other_values_cost_no_composition() -> None:
    job = Job.from_overrides(JOB)
    compositions = compose._composed.cache_info().misses
    for tp in range(1, 9):
        job.with_(f"layout.tp={tp}", "train.global_batch=128")
    assert compose._composed.cache_info().misses == compositions


QUOTED = {
    "launch.environment.NCCL_SOCKET_IFNAME=^lo,docker0": ("environment", {"NCCL_SOCKET_IFNAME": "^lo,docker0"}),
    "launch.environment={NCCL_SOCKET_IFNAME:^lo,docker0,A:b}": (
        "environment", {"NCCL_SOCKET_IFNAME": "^lo,docker0", "A": "b"},
    ),
    "launch.code=[--a=b,c d]": ("code", ("--a=b", "c d")),
    "launch.preload=[epoch=3-step=100.ckpt]": ("preload", ("epoch=3-step=100.ckpt",)),
    "launch.environment.CKPT=epoch=3-step=100.ckpt": ("environment", {"CKPT": "epoch=3-step=100.ckpt"}),
    "launch.environment.A=it's $5=x": ("environment", {"A": "it's $5=x"}),
}  # fmt: skip


@pytest.mark.parametrize("word", QUOTED)
def test_a_value_that_needs_quotes_is_answered_with_the_form_that_works(word: str) -> None:
    with pytest.raises(InputError, match="is not an override") as caught:
        load([word])
    (said,) = caught.value.problems
    (typed,) = shlex.split(said.rpartition(": write ")[2])
    name, value = QUOTED[word]
    assert getattr(load([typed]).options.launch, name) == value


def test_where_quotes_do_not_help_none_are_advised() -> None:
    for word in ("launch.code=[a", "launch.environment={A:b", "train"):
        with pytest.raises(InputError, match="write key=value, close brackets, quote special characters"):
            load([word])
