"""What a MIG slice is, and which one a job on one GPU needs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.cluster import mig_table
from launcher.cluster.mig_profiles import TABLE, placed, profiles_by_card, profiles_of
from launcher.cluster.readers_mig import read_mig_parted
from launcher.cluster.readers_smi import read_mig_profiles
from launcher.config.compose import load
from launcher.cost.model import CostModel
from launcher.errors import InputError
from launcher.planner.explain import reasons
from launcher.planner.search import search
from tests.cluster.test_discover import composed
from tests.cluster.test_discover_from import found as found_from
from tests.cluster.test_recorded_texts import needs_texts, recorded
from tests.cluster.texts import MIG_LIST, MIG_PROFILES


def why(*words: str) -> str:
    settings = load(list(words))
    model = CostModel(settings.job)
    return "\n".join(reasons(search(settings.job, settings.request, top=3, model=model), model)[0])


@pytest.mark.parametrize(("entry", "name"), [("a100_mig_1g", "1g.10gb"), ("a100_mig_3g", "3g.40gb")])
def test_a_slice_is_what_its_entry_says(entry: str, name: str) -> None:
    """The entries of configs/gpu were written by hand from the same table."""
    written, whole = (load([f"cluster={one}"]).job.cluster.node.gpu for one in (entry, "dgx_a100_80g"))
    profile = next(each for each in profiles_of("a100_sxm_80g") if each.name == name)
    found = whole.cut(profile)

    assert (found.memory_bytes, found.num_sms, found.mig_profile) == (written.memory_bytes, written.num_sms, name)
    assert found.nvlink_bytes_per_s == written.nvlink_bytes_per_s == 0
    for rate in ("hbm_bytes_per_s", "pcie_bytes_per_s"):
        assert getattr(found, rate) == pytest.approx(getattr(written, rate), rel=1e-3)
    assert found.peak("bf16") == pytest.approx(written.peak("bf16"), rel=2e-3)


def test_profiles_are_the_rows_that_nvidia_smi_prints() -> None:
    known = {each.name: each for each in profiles_of("a100_sxm_80g")}
    for row in read_mig_profiles(MIG_PROFILES):
        profile = known[row.name]
        assert (row.instances, row.num_sms) == (profile.instances, profile.num_sms)
        assert row.memory_bytes == int(profile.memory_gib * 2**30)


@pytest.mark.parametrize(
    ("model", "slice_name"), [("gpt3_125m", "1g.10gb"), ("gpt3_760m", "2g.20gb"), ("gpt3_1b3", "3g.40gb")]
)
def test_the_smallest_slice_that_fits_is_named(model: str, slice_name: str) -> None:
    assert f"a MIG slice {slice_name} is enough" in why(
        "cluster=fly_a100_80gb", f"model={model}", "train.global_batch=64"
    )


@pytest.mark.parametrize(
    "words",
    [
        ("cluster=fly_a100_80gb", "model=gpt3_2b7", "train.global_batch=64"),  # needs the whole of it
        ("cluster=dgx_a100_80g", "model=gpt3_125m", "train.global_batch=64"),  # takes eight GPUs
        ("cluster=a100_mig_3g", "model=gpt3_125m", "train.global_batch=64"),  # is on one already
        ("cluster=fly_l40s", "model=gpt3_125m", "train.global_batch=64"),  # has no MIG
    ],
)
def test_no_slice_is_named_where_none_helps(words: tuple[str, ...]) -> None:
    assert "MIG slice 1g" not in why(*words) and "is enough, as" not in why(*words)


@needs_texts
@pytest.mark.parametrize(("card", "text"), [("a100_40g", "mig_lgip_a100_40gb"), ("a100_80g", "mig_lgip_a100_80gb")])
def test_the_table_is_what_recorded_texts_make(card: str, text: str) -> None:
    """The 80 GB GPU's places are those of the 40 GB one: one chip, the same ids."""
    lines = TABLE.read_text().splitlines()
    made = list(mig_table.rows(card, recorded(f"{text}.txt"), recorded("mig_lgipp_a100_40gb.txt")))
    assert len(made) >= 5 and set(made) <= set(lines)


@pytest.mark.parametrize("card", profiles_by_card())
def test_as_many_instances_fit_a_gpu_as_nvidia_smi_counts_and_no_more(card: str) -> None:
    for profile in profiles_by_card()[card]:
        starts = placed([profile] * profile.instances)
        assert starts is not None, profile
        covered = [place for start in starts for place in range(start, start + profile.size)]
        assert len(covered) == len(set(covered)) and max(covered) < profile.slices
        assert placed([profile] * (profile.instances + 1)) is None, profile


@needs_texts
def test_every_way_to_cut_that_mig_parted_ships_fits_the_card_that_it_is_for() -> None:
    cards = [{each.name: each for each in profiles_by_card()[card]} for card in ("a100_40g", "a100_80g", "a30")]
    tried = 0
    for parts in read_mig_parted(recorded("mig_parted_config-default.yaml")).values():
        for names in ([name for name, count in part.slices.items() for _ in range(count)] for part in parts):
            known = [card for card in cards if names and set(names) <= set(card)]
            tried += bool(known)
            assert not known or any(placed([card[name] for name in names]) is not None for card in known), names
    assert tried >= 12


@pytest.mark.parametrize(("entry", "name"), [("a100_mig_1g", "1g.10gb"), ("a100_mig_3g", "3g.40gb")])
def test_the_key_that_cuts_a_gpu_gives_what_an_entry_says(entry: str, name: str) -> None:
    cut = load(["cluster=fly_a100_80gb", f"cluster.node.gpu.mig_slice={name}"]).job.cluster.node
    written = load([f"cluster={entry}"]).job.cluster.node.gpu
    assert (cut.gpu.memory_bytes, cut.gpu.num_sms, cut.is_mig) == (written.memory_bytes, written.num_sms, True)
    with pytest.raises(InputError, match=r"mig_slice=5g.40gb is no MIG profile of a100_sxm_80g: it has 1g"):
        load(["cluster=fly_a100_80gb", "cluster.node.gpu.mig_slice=5g.40gb"])
    with pytest.raises(InputError, match="of l40s: no profiles of it are known here"):
        load(["cluster=fly_l40s", "cluster.node.gpu.mig_slice=1g.10gb"])


def test_a_found_slice_without_an_entry_of_its_own_is_cut_from_the_whole_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = MIG_LIST.replace("80GB", "40GB").replace("3g.40gb", "3g.20gb")
    node = composed(found_from(text), tmp_path, monkeypatch).node
    assert (node.gpu.mig_profile, node.num_gpus, node.gpu.num_sms) == ("3g.20gb", 4, 42)
    assert node.gpu.memory_bytes == int(19.62 * 2**30)


def test_a_mix_of_small_jobs_shares_gpus_without_an_overlap(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("cluster=dgx_a100_80g", "train.global_batch=64", "mix=gpt3_125m:9,gpt3_760m:2,gpt3_1b3,gpt3_2b7")
    assert main(["plan", *words, "output=json"]) == 0
    document = json.loads(capsys.readouterr().out)
    jobs = Counter(job["model"] for gpu in document["gpus"] for job in gpu["jobs"])
    assert jobs == {"gpt3_125m": 9, "gpt3_760m": 2, "gpt3_1b3": 1, "gpt3_2b7": 1}
    sizes = {profile.name: profile.size for profile in profiles_of("a100_sxm_80g")}
    for gpu in document["gpus"]:
        slices = [(job["start"], sizes[job["profile"]]) for job in gpu["jobs"] if job["profile"]]
        covered = [place for start, size in slices for place in range(start, start + size)]
        assert len(covered) == len(set(covered)) and len(slices) in (0, len(gpu["jobs"]))
        assert gpu["command"].count(",") + 1 == len(slices) or not slices
    assert len(document["gpus"]) == 4 and document["available"] == 8
    assert main(["plan", *words]) == 0
    said = capsys.readouterr().out
    assert "13 jobs on 4 a100_sxm_80g of the 8 of dgx_a100_80g" in said
    assert "nvidia-smi mig -i 1 -cgi 9,14,14 -C" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cluster=fly_l40s", "mix=gpt3_125m"], "l40s of fly_l40s has no MIG profiles here"),
        (["cluster=a100_mig_3g", "mix=gpt3_125m"], "is a slice already"),
        (["cluster=fly_a100_80gb", "mix=gpt3_125m:none"], "must be models and numbers of jobs"),
        (["cluster=fly_a100_80gb", "mix=gpt9"], "gpt9"),
    ],
)
def test_a_mix_that_cannot_be_cut_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "train.global_batch=64", *words]) == 2
    assert said in capsys.readouterr().err
