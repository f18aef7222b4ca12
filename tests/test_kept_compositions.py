"""Compositions are kept for the next command, and never outlive what they were made of."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st

from launcher.config import compose, folders, overrides
from launcher.config.compose import compose_config, load
from launcher.resources import resource

CHOICE = "cluster=dgx_a100_80g"


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A copy of the shipped files that a test may change, and a cache of its own; works in an empty folder."""
    copy = tmp_path / "shipped"
    shutil.copytree(resource("configs"), copy)
    for module in ("launcher.config.folders", "launcher.config.files", "launcher.config.compose"):
        monkeypatch.setattr(f"{module}.resource", lambda _: copy)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    compose._composed.cache_clear()
    yield copy
    compose._composed.cache_clear()


def kept_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").rglob("*.json"))


def fresh(*words: str) -> dict[str, object]:
    """The configuration as the next process sees it."""
    compose._composed.cache_clear()
    return compose_config(words)


def without_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("Hydra composed again")

    monkeypatch.setattr("launcher.config.composition.composed", refused)


@pytest.mark.usefixtures("ours")
def test_a_kept_composition_is_the_one_that_hydra_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = fresh(CHOICE, "model=gpt3_13b")
    assert len(kept_files(tmp_path)) == 1
    without_hydra(monkeypatch)
    assert fresh(CHOICE, "model=gpt3_13b") == first
    with pytest.raises(AssertionError):
        fresh(CHOICE, "model=gpt3_6b7")


def test_a_changed_file_is_composed_again(ours: Path) -> None:
    before = fresh(CHOICE)["cluster"]["num_nodes"]  # type: ignore[index]
    file = ours / "cluster" / "dgx_a100_80g.yaml"
    file.write_text(file.read_text() + f"\nnum_nodes: {before + 7}\n")
    assert fresh(CHOICE)["cluster"]["num_nodes"] == before + 7  # type: ignore[index]


def test_a_new_file_is_seen(ours: Path) -> None:
    fresh(CHOICE)
    (ours / "cluster" / "new.yaml").write_text((ours / "cluster" / "dgx_a100_80g.yaml").read_text())
    assert load(["cluster=new"]).job.cluster.node.num_gpus == 8


def test_files_of_the_users_own_are_kept_until_one_changes_comes_or_goes(
    ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = (ours / "cluster" / "dgx_a100_80g.yaml").read_text()
    before = fresh(CHOICE)["cluster"]["num_nodes"]  # type: ignore[index]
    own = tmp_path / "work" / "configs" / "cluster"
    own.mkdir(parents=True)
    (own / "dgx_a100_80g.yaml").write_text(f"{shipped}\nnum_nodes: 3\n")
    assert folders.folders()[0] == own.parent
    assert fresh(CHOICE)["cluster"]["num_nodes"] == 3  # type: ignore[index]
    with monkeypatch.context() as patched:
        without_hydra(patched)
        assert fresh(CHOICE)["cluster"]["num_nodes"] == 3  # type: ignore[index]
    (own / "dgx_a100_80g.yaml").write_text(f"{shipped}\nnum_nodes: 4\n")
    assert fresh(CHOICE)["cluster"]["num_nodes"] == 4  # type: ignore[index]
    (own / "dgx_a100_80g.yaml").unlink()
    assert fresh(CHOICE)["cluster"]["num_nodes"] == before  # type: ignore[index]


def test_files_of_the_users_own_that_name_variables_are_not_kept(
    ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "work" / "configs" / "model"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("defaults: [gpt_tiny, _self_]\nname: ${oc.env:MODEL_FOLDER}\n")
    for name in ("/a", "/b"):
        monkeypatch.setenv("MODEL_FOLDER", name)
        assert fresh("model=mine")["model"]["name"] == name  # type: ignore[index]
    assert not kept_files(tmp_path)


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"key": 1}', '{"key": [], "files": 3, "config": {}}'])
def test_a_damaged_entry_is_composed_again(tmp_path: Path, text: str) -> None:
    first = fresh(CHOICE)
    [file] = kept_files(tmp_path)
    whole = file.read_text()
    file.write_text(text)
    assert fresh(CHOICE) == first
    assert file.read_text() == whole


@pytest.mark.usefixtures("ours")
def test_an_entry_of_other_choices_or_another_version_is_not_taken(tmp_path: Path) -> None:
    first = fresh(CHOICE)
    [file] = kept_files(tmp_path)
    entry = json.loads(file.read_text())
    entry["key"][0], entry["config"] = "0.0.0", {}
    file.write_text(json.dumps(entry))
    assert fresh(CHOICE) == first


@pytest.mark.usefixtures("ours")
def test_a_cache_that_others_may_write_to_or_that_cannot_be_made_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "cache" / "nvlink-launcher" / "compositions"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    first = fresh(CHOICE)
    assert not kept_files(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert fresh(CHOICE) == first


@pytest.mark.usefixtures("ours")
def test_few_compositions_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("launcher.config.kept.MOST", 2)
    for model in ("gpt3_13b", "gpt3_6b7", "gpt3_2b7", "gpt3_1b3"):
        fresh(f"model={model}")
    assert len(kept_files(tmp_path)) == 2


WORDS = st.one_of(
    st.integers().map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(["true", "False", "NULL", "inf", "NaN", "-inf", "nul", "t", "1e3", "007", "1_000", "-0", "0.50"]),
    st.from_regex(r"[A-Za-z0-9_.\-]{1,8}", fullmatch=True),
)


@given(st.from_regex(r"[a-z_]{1,5}(\.[a-z_]\w{0,3}){0,2}", fullmatch=True), WORDS)
@example("a.b", "-0")
@example("a.b", "0.0")
@example("a.b", "ñ")
def test_a_plain_override_is_read_as_hydra_reads_it(key: str, text: str) -> None:
    found = overrides._plain(f"{key}={text}")
    if found is None:
        return
    parsed = OverridesParser.create().parse_override(f"{key}={text}")
    assert (found.key, found.sign) == (parsed.key_or_group, "")
    assert not parsed.is_sweep_override()
    value = parsed.value()
    assert (type(found.value), repr(found.value)) == (type(value), repr(value))


def test_the_second_plan_of_a_job_does_not_import_hydra(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom launcher.cli import main\n"
        "code = main(['plan', 'cluster=dgx_a100_80g', 'model=gpt3_1b3', 'layout.tp=2', 'train.lr=0.1'])\n"
        "print(code, *sorted({'hydra', 'omegaconf', 'yaml'} & set(sys.modules)), file=sys.stderr)\n"
    )
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent.parent)}
    said = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60
        ).stderr.split()
        for _ in range(2)
    ]
    assert said == [["0", "hydra", "omegaconf", "yaml"], ["0"]]
