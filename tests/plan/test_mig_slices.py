"""What a MIG slice is, and which one a job on one GPU needs."""

from __future__ import annotations

import pytest

from launcher.cluster.mig_profiles import PROFILES, slice_of
from launcher.cluster.readers_smi import read_mig_profiles
from launcher.config.compose import load
from launcher.cost.model import CostModel
from launcher.planner.explain import reasons
from launcher.planner.search import search
from tests.cluster.texts import MIG_PROFILES


def why(*words: str) -> str:
    settings = load(list(words))
    model = CostModel(settings.job)
    return "\n".join(reasons(search(settings.job, settings.request, top=3, model=model), model)[0])


@pytest.mark.parametrize(("entry", "name"), [("a100_mig_1g", "1g.10gb"), ("a100_mig_3g", "3g.40gb")])
def test_a_slice_is_what_its_entry_says(entry: str, name: str) -> None:
    """The entries of configs/gpu were written by hand from the same table."""
    written, whole = (load([f"cluster={one}"]).job.cluster.node.gpu for one in (entry, "dgx_a100_80g"))
    profile = next(each for each in PROFILES["a100_sxm_80g"] if each.name == name)
    found = slice_of(whole, profile)

    assert (found.memory_bytes, found.num_sms, found.mig_profile) == (written.memory_bytes, written.num_sms, name)
    assert found.nvlink_bytes_per_s == written.nvlink_bytes_per_s == 0
    for rate in ("hbm_bytes_per_s", "pcie_bytes_per_s"):
        assert getattr(found, rate) == pytest.approx(getattr(written, rate), rel=1e-3)
    assert found.peak("bf16") == pytest.approx(written.peak("bf16"), rel=2e-3)


def test_profiles_are_the_rows_that_nvidia_smi_prints() -> None:
    known = {each.name: each for each in PROFILES["a100_sxm_80g"]}
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
