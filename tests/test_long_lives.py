"""Plans and commands in one process that lives on, as a notebook: they change neither each other nor the program.

Ranks and their engines are in tests/worker/test_worker_long_lives.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra import compose, initialize
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from omegaconf import OmegaConf
from process_state import left_behind, nothing_left_behind, process_state

import launcher
from launcher.cli import main
from launcher.config.compose import load

WORDS = ("cluster=dgx_a100_80g", "cluster.num_nodes=2", "model=gpt3_1b3", "train.global_batch=64")
BASE: dict[str, Any] = {"version_base": "1.2"} if hydra.__version__.startswith("1.3") else {}  # not the launcher's
CLUSTER = """\
defaults:
  - /gpu@node.gpu: a100_sxm_80g
  - _self_
name: mine
num_nodes: 1
node: {num_gpus: 8}
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in with a cluster file; compositions are kept nowhere, so that Hydra is asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "configs" / "cluster" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(CLUSTER)
    return file


@pytest.fixture
def in_a_hydra_app() -> Iterator[None]:
    """A program that uses Hydra itself, with resolvers of its own under names that Hydra and OmegaConf have too."""
    Plugins.instance()  # as in any program with Hydra: importing these registers their configurations
    state = Singleton.get_state()
    with initialize(config_path=None, job_name="theirs", **BASE):
        OmegaConf.register_new_resolver("oc.env", lambda name: f"of the program: {name}", replace=True)
        OmegaConf.register_new_resolver("now", lambda _: "then", replace=True)
        HydraConfig.instance().set_config(compose(overrides=[], return_hydra_config=True))
        yield
    Singleton.set_state(state)


@pytest.mark.usefixtures("in_a_hydra_app")
def test_a_program_that_uses_hydra_itself_goes_on_as_before(mine: Path) -> None:
    with nothing_left_behind():
        assert launcher.estimate(["cluster=mine", *WORDS[2:]]).step_time_s > 0
        with pytest.raises(launcher.InputError, match="does not compose"):
            mine.write_text(CLUSTER.replace("a100_sxm_80g", "no_such_gpu"))
            launcher.plan(["cluster=mine", *WORDS[2:]])
    assert GlobalHydra.instance().is_initialized() and HydraConfig.get().job.name == "theirs"
    assert OmegaConf.create({"a": "${oc.env:X} ${now:%H}"}).a == "of the program: X then"


def test_what_hydra_knows_of_the_launcher_may_be_reset(mine: Path) -> None:
    """Hydra's own recipe for tests of programs that use it: Singleton.get_state before, set_state after."""
    Plugins.instance()
    state = Singleton.get_state()
    first = load(["cluster=mine", "model=gpt3_1b3"])
    Singleton.set_state(state)
    mine.write_text(CLUSTER.replace("num_gpus: 8", "num_gpus: 4"))
    assert load(["cluster=mine", "model=gpt3_1b3"]).job.cluster.node.num_gpus == 4
    assert first.job.cluster.node.num_gpus == 8


def test_a_file_that_changed_a_folder_and_a_variable_are_seen_by_the_next_plan(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["cluster=mine", "model=gpt3_1b3", "train.global_batch=64"]
    with nothing_left_behind():
        assert launcher.plan(words).layout.world_size == 8
        mine.write_text(CLUSTER.replace("num_gpus: 8", "num_gpus: 2"))
        assert launcher.plan(words).layout.world_size == 2
    other = tmp_path / "other" / "configs" / "cluster" / "mine.yaml"
    other.parent.mkdir(parents=True)
    other.write_text(CLUSTER.replace("num_gpus: 8", "num_gpus: 4"))
    monkeypatch.chdir(tmp_path / "other")
    assert launcher.plan(words).layout.world_size == 4
    monkeypatch.chdir(tmp_path)
    for where in ("/a", "/b"):
        monkeypatch.setenv("WHERE", where)
        assert load([*words, "train.data=${oc.env:WHERE}"]).run_options.train.data == where


def test_jobs_of_one_process_are_independent_of_each_other() -> None:
    first, second = launcher.Job.from_overrides(WORDS), launcher.Job.from_overrides([*WORDS, "layout.tp=4"])
    alone = launcher.estimate(WORDS)
    assert second.plan().layout.tp == 4
    assert first.plan() == launcher.plan(WORDS)
    assert first.estimate() == alone == first.with_("layout.tp=8").with_("layout.tp=1").estimate()


def test_threads_of_one_process_may_plan_at_once(mine: Path) -> None:
    choices = ["dgx_a100_80g", "dgx_a100_40g", "mine", "mine"]
    with nothing_left_behind(), ThreadPoolExecutor(4) as pool:
        jobs = [
            settings.job for settings in pool.map(lambda name: load([f"cluster={name}", "model=gpt3_1b3"]), choices)
        ]
    assert [job.cluster.name for job in jobs] == choices


COMMANDS = (
    *("plan cluster=mine model=gpt3_1b3 top=2 save=best.json", "plan cluster=mine model=gpt3_1b3 output=json"),
    *("plan cluster=mine model=gpt3_175b", "plan tp=2 nonsense=1", "plan from=missing.sh", "plan --cfg job"),
    *(
        "plan -m cluster=mine,dgx_a100_80g model=gpt3_1b3",
        "submit cluster=mine model=gpt3_1b3 dry_run=true run_dir=dry",
    ),
    *(
        "run cluster=cpu dry_run=true run_dir=here",
        "export plan=best.json to=torchrun out=exported",
        "show cluster=mine",
    ),
    *(
        "report plan=best.json file=page.html",
        "compare best.json best.json",
        "lint job.sh",
        "discover from=missing.txt",
    ),
    *("--help", "plan --help", "keys launch.", "completion bash", "ls", "warm status", "status nowhere"),
    *("logs nowhere", "new recipe third", "sync nowhere dry_run=true"),
)


def test_commands_leave_the_process_as_it_was(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (mine.parents[2] / "job.sh").write_text("#!/bin/bash\n#SBATCH -N 2\nsrun python train.py\n")
    left, codes = {}, {}
    for line in COMMANDS:
        before = process_state()
        codes[line] = main(line.split())
        if changed := left_behind(before):
            left[line] = changed
        assert "Traceback" not in capsys.readouterr().err, line
    assert not left
    assert {0, 2, 3} <= set(codes.values()) and codes[COMMANDS[0]] == 0, codes
