"""The sbatch command of a plan: golden texts, hostile names, settings that are refused."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import plan

from launcher.agent.settings import LaunchSettings
from launcher.config.compose import compose_config
from launcher.errors import InputError
from launcher.export.planning import express
from launcher.export.targets import target
from launcher.planner import Plan
from launcher.planner.options import TrainOptions
from launcher.planner.record import Program, RunOptions
from launcher.schema import read
from launcher.slurm.allocation import Allocation, given_cpus
from launcher.slurm.request import SubmitRequest, Where, job_name, submit_request
from launcher.slurm.settings import SlurmSettings, time_limit_s
from launcher.slurm.start import settings_here
from launcher.slurm.step import Step, rank_variables, step_argv
from launcher.slurm.submit import dry_run_text, warnings

GOLDEN = Path(__file__).parent / "golden"
WHERE = Where(Path("/home/me/runs/gpt-1"), Path("/opt/launcher/slurm/train.sbatch"), "/home/me/venv/bin/python")
STEP = Step(WHERE.run_folder, "/home/me", "/opt/launcher/recipes/gpt.py", WHERE.python, num_nodes=4)
ALL_SITE_KEYS = {
    "job_name": "big", "account": "phys", "partition": "gpu", "qos": "long", "time": "1-12:00:00",
    "constraint": "a100&nvswitch", "reservation": "r1", "exclude": "node[03,07]", "nodelist": "node[01-16]",
    "comment": "for the paper", "mail_user": "me@site", "mail_type": "END,FAIL", "switches": "1@02:00:00",
    "dependency": "afterok:17", "mem": "0", "exclusive": True, "gpu_type": "a100", "cpus_per_gpu": 12,
    "extra": ["--licenses=fs:2", "--nice=100"], "signal": "SIGUSR2", "signal_lead_s": 600, "requeue": False,
}  # fmt: skip
CASES = {
    "bare": {},
    "site": ALL_SITE_KEYS,
    "pyxis": {
        "container": {
            "runtime": "pyxis", "image": "nvcr.io#nvidia/pytorch:24.10-py3", "mounts": ["/data:/data:ro"],
            "options": ["--no-container-mount-home"],
        },
        "environment": {"NCCL_DEBUG": "WARN", "HF_HOME": "/data/hf"},
    },
    "apptainer": {
        "container": {
            "runtime": "apptainer", "image": "/images/my torch.sif", "mounts": ["/data:/data"], "python": "python",
        },
    },
    "shrinkable": {"replan": "shrink", "min_nodes": 2},
    "clean environment": {"export": "none"},
    "spares": {"spares": 2},
}  # fmt: skip


def request(**keys: object) -> SubmitRequest:
    return submit_request(plan(), SlurmSettings.from_config(keys), WHERE, without=("WANDB_API_KEY",))


@pytest.mark.parametrize("name", CASES)
def test_the_commands_of_a_site_are_these(name: str) -> None:
    settings = SlurmSettings.from_config(CASES[name])
    submission = submit_request(plan(), settings, WHERE, without=("WANDB_API_KEY",))
    step = step_argv(plan(), settings, STEP)
    text = f"{submission.as_shell()}\n\n# in the job:\n{shlex.join(step)}\n"
    golden = GOLDEN / f"{name.replace(' ', '_')}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


def test_a_step_on_some_hosts_names_them_and_shares_what_a_dead_one_holds() -> None:
    argv = step_argv(plan(), SlurmSettings(), replace(STEP, num_nodes=3, hosts=("n1", "n2", "n4"), shares=True))
    assert {"--nodes=3", "--ntasks=3", "--nodelist=n[1-2,4]", "--overlap"} <= set(argv)


def test_a_step_takes_no_more_cores_than_the_job_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_CPUS_PER_NODE", "72(x2),36")
    assert given_cpus() == 36
    assert "--cpus-per-task=36" in step_argv(plan(), SlurmSettings(), replace(STEP, cpus=36))
    assert "--cpus-per-task=128" in step_argv(plan(), SlurmSettings(), replace(STEP, cpus=256))


def test_the_folder_of_the_script_is_mounted_unless_it_is_already() -> None:
    container = {"container": {"runtime": "apptainer", "image": "x.sif"}}
    settings = SlurmSettings.from_config(container)
    inside = replace(STEP, script="/home/me/code/train.py")
    assert "--bind=/opt/launcher/recipes:/opt/launcher/recipes" in step_argv(plan(), settings, STEP)
    assert len([word for word in step_argv(plan(), settings, inside) if word.startswith("--bind")]) == 2


def test_launch_environment_wins_over_the_image_s_own() -> None:
    keys = {"container": {"runtime": "apptainer", "image": "x.sif"}, "environment": {"A": "1"}}
    assert rank_variables(SlurmSettings.from_config(keys)) == {"A": "1", "APPTAINERENV_A": "1"}
    assert rank_variables(SlurmSettings.from_config({"environment": {"A": "1"}})) == {"A": "1"}


def test_a_sweep_is_one_array_and_its_log_names_the_task() -> None:
    settings = SlurmSettings.from_config({"array_limit": 2})
    argv = submit_request(plan(), settings, WHERE, array_size=6).argv
    assert "--array=0-5%2" in argv
    assert "--output=/home/me/runs/gpt-1/logs/slurm-%A_%a.out" in argv


def test_the_shell_text_and_the_argv_are_the_same_command(tmp_path: Path) -> None:
    hostile = tmp_path / "a b'c\"d$(touch pwned)`touch pwned`\n;touch pwned; %j *"
    hostile.mkdir()
    settings = SlurmSettings.from_config({"comment": "$(touch pwned) 'x'", "job_name": hostile.name})
    where = Where(hostile, Path(__file__).parents[2] / "slurm" / "train.sbatch", "/usr/bin/python3")
    submission = submit_request(plan(), settings, where, without=("WANDB_API_KEY",))
    (tmp_path / "sbatch").write_text('#!/bin/sh\nprintf "%s\\0" "$0" "$@" > "$OUT"; env > "$OUT.env"\n')
    (tmp_path / "sbatch").chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "OUT": str(tmp_path / "out"), "WANDB_API_KEY": "0123secret",
    }  # fmt: skip
    text = dry_run_text(submission, run_folder=hostile)
    subprocess.run(["bash", "-c", text], env=environment, cwd=tmp_path, check=True)
    seen = (tmp_path / "out").read_text().split("\0")[1:-1]
    assert seen == list(submission.argv[1:])
    assert "0123secret" not in (tmp_path / "out.env").read_text()
    assert not list(tmp_path.rglob("pwned"))


@given(st.text(min_size=1))
def test_every_word_survives_the_shell(word: str) -> None:
    submission = SubmitRequest(("sbatch", f"--comment={word}"), (), Path("train.sbatch"))
    assert shlex.split(submission.as_shell().replace(" \\\n  ", " ", 1)) == ["sbatch", f"--comment={word}"]


@given(st.text())
def test_a_job_name_is_one_printable_line(name: str) -> None:
    assert job_name(name).isprintable()
    assert 0 < len(job_name(name)) <= 120


def test_gpus_and_cores_come_from_plan_and_cluster_and_memory_is_never_guessed() -> None:
    argv = request().argv
    assert {"--nodes=4", "--ntasks-per-node=1", "--gpus-per-node=8", "--cpus-per-task=128"} <= set(argv)
    assert not [word for word in argv if word.startswith(("--mem", "--gpus-per-task", "--gres"))]


def test_a_plan_smaller_than_a_node_asks_for_its_share() -> None:
    argv = submit_request(plan(nodes=1, tp=2, pp=1, dp=1), SlurmSettings(), WHERE).argv
    assert {"--nodes=1", "--gpus-per-node=2", "--cpus-per-task=32"} <= set(argv)


REFUSED = {
    "YAML turned the time into minutes": ({"time": 86400}, "quotes"),
    "no time": ({"time": "soon"}, "HH:MM:SS"),
    "unknown key": ({"container": {"img": "x"}}, "launch.container.img"),
    "image without runtime": ({"container": {"image": "x.sif"}}, "bare takes none"),
    "runtime without image": ({"container": {"runtime": "pyxis"}}, "need an image"),
    "a flag that hides NVLink": ({"extra": ["--gpus-per-task=1"]}, "NVLink"),
    "a flag that is no flag": ({"extra": ["evil.sh"]}, "take as the script"),
    "a secret in the environment": ({"environment": {"WANDB_API_KEY": "0123"}}, "launch.secrets"),
    "a value among the names of secrets": ({"secrets": ["WANDB_API_KEY=0123"]}, "never values"),
    "a line break": ({"comment": "a\nb"}, "control character"),
    "other GPUs without leave": ({"gpu_clusters": {"h100": "dgx_h100"}}, "replan=any"),
    "other GPUs and a fixed type": (
        {"gpu_clusters": {"h100": "dgx_h100"}, "replan": "any", "gpu_type": "a100"},
        "drop one",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_settings_are_refused_with_the_way_out(case: str) -> None:
    keys, words = REFUSED[case]
    with pytest.raises(InputError, match=words):
        SlurmSettings.from_config(keys)


def test_a_secret_value_is_not_repeated_in_a_refusal() -> None:
    with pytest.raises(InputError) as caught:
        SlurmSettings.from_config({"environment": {"HF_TOKEN": "hf_0123"}, "secrets": ["HF_TOKEN=hf_0123"]})
    assert len(caught.value.problems) == 2
    assert "hf_0123" not in str(caught.value)


def test_a_folder_that_a_mount_cannot_name_is_refused_with_a_container() -> None:
    settings = SlurmSettings.from_config({"container": {"runtime": "pyxis", "image": "x"}})
    where = Where(Path("/runs/a:b"), WHERE.script, WHERE.python)
    with pytest.raises(InputError, match="':' or ','"):
        submit_request(plan(), settings, where)
    assert submit_request(plan(), SlurmSettings(), where).argv


def test_a_percent_sign_in_the_folder_is_no_pattern_and_a_backslash_is_refused() -> None:
    where = Where(Path("/runs/50%j"), WHERE.script, WHERE.python)
    argv = submit_request(plan(), SlurmSettings(), where).argv
    assert {"--chdir=/runs/50%j", "--output=/runs/50%%j/logs/slurm-%j.out"} <= set(argv)
    with pytest.raises(InputError, match="backslash"):
        submit_request(plan(), SlurmSettings(), Where(Path("/runs/a\\b"), WHERE.script, WHERE.python))


def test_fewer_nodes_need_leave_to_plan_again() -> None:
    with pytest.raises(InputError, match=r"launch\.replan"):
        request(min_nodes=2)
    with pytest.raises(InputError, match="more than the 4 nodes"):
        request(replan="shrink", min_nodes=5)


def test_the_configuration_file_and_the_settings_agree() -> None:
    config = compose_config(["launch=slurm"])["launch"]
    assert SlurmSettings.from_config(config) == SlurmSettings()
    assert read(LaunchSettings, config, "launch", siblings=(SlurmSettings,)).grace_s < SlurmSettings().signal_lead_s


WARNED = {
    "nothing is saved": ({}, {}, "train.checkpoint_every=0"),
    "the signal is not heeded": ({"checkpoint_every": 10}, {"signal": "USR2"}, "launch.stop_signals lacks USR2"),
    "the signal comes soon after the start": ({"checkpoint_every": 10}, {"time": "9:59"}, "most of launch.time=9:59"),
    "the grace is too long": ({"checkpoint_every": 10}, {"signal_lead_s": 60, "grace_s": 60}, "launch.grace_s=60"),
}


@pytest.mark.parametrize("case", WARNED)
def test_what_slurm_accepts_and_that_cannot_work_is_reported(case: str) -> None:
    train, keys, words = WARNED[case]
    group = {"stop_signals": ["TERM", "USR1"], **keys}
    launch = read(LaunchSettings, group, "launch", siblings=(SlurmSettings,))
    job = replace(plan(), options=RunOptions(train=TrainOptions(**train)))
    [warning] = warnings(job, SlurmSettings.from_config(keys), launch)
    assert words in warning


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("2", 120), ("2:30", 150), ("1:00:05", 3605), ("1-2", 93600), ("1-02:30", 95400), ("2-00:00:01", 172801)],
)
def test_time_limits_are_read_as_sbatch_reads_them(time: str, seconds: int) -> None:
    assert time_limit_s(time) == seconds


def test_a_sound_submission_gets_no_warning_and_a_script_that_nothing_would_bring_back_does(tmp_path: Path) -> None:
    launch = LaunchSettings.from_config({"stop_signals": ["TERM", "USR1"]})
    assert (
        warnings(replace(plan(), options=RunOptions(train=TrainOptions(checkpoint_every=10))), SlurmSettings(), launch)
        == []
    )
    own = replace(plan(), options=RunOptions(program=Program(kind="script", target="mine.py")))
    [warning] = warnings(own, SlurmSettings(), launch)
    assert "launch.progress=FOLDER, or set launch.requeue=always" in warning
    for keys in ({"progress": "ckpts"}, {"requeue": "always"}, {"requeue": False}):
        assert warnings(own, SlurmSettings.from_config(keys), launch) == []
    ours = tmp_path / "ours.py"
    ours.write_text("from launcher.worker import session\n")
    with_session = replace(plan(), options=RunOptions(program=Program(kind="script", target=str(ours))))
    assert warnings(with_session, SlurmSettings(), launch) == []


def test_without_the_environment_only_the_wanted_secrets_are_exported_and_by_name() -> None:
    assert "--export=NONE" in request(export="none").argv
    assert "--export=HF_TOKEN,DB_PASS" in request(export="none", secrets=["HF_TOKEN", "DB_PASS"]).argv


def test_a_plan_with_different_numbers_of_ranks_is_for_ssh_alone() -> None:
    """Not for a batch job, an allocation or an export; plan.json keeps it."""
    uneven = replace(plan(nodes=3, tp=1, pp=1, dp=7), options=RunOptions(node_ranks=(2, 4, 1)))
    assert Plan.from_dict(json.loads(json.dumps(uneven.to_dict()))).placement.slot(6).node == 2
    with pytest.raises(InputError, match=r"2, 4, 1 ranks, and Slurm gives every node .* launch=ssh"):
        submit_request(uneven, SlurmSettings(), WHERE)
    with pytest.raises(InputError, match="2, 4, 1 ranks, and Slurm gives every node"):
        settings_here(SlurmSettings(), uneven, Allocation("17", ("a", "b", "c"), 0))
    with pytest.raises(InputError, match="2, 4, 1 ranks, and exports say one number"):
        express(uneven, target("srun"))
    for broken in ((2, 4), (2, 5, 0), (9, -2)):
        with pytest.raises(InputError, match="node_ranks is"):
            Plan.from_dict(replace(uneven, options=RunOptions(node_ranks=broken)).to_dict())
    with pytest.raises(InputError, match="for data parallelism alone"):
        Plan.from_dict(replace(uneven, layout=replace(uneven.layout, tp=7, dp=1)).to_dict())


@pytest.mark.parametrize("name", ["TERM", "SIGINT"])
def test_the_signal_before_a_time_limit_is_none_by_which_slurm_ends_a_job(name: str) -> None:
    with pytest.raises(InputError, match="by which Slurm ends a job: USR1 or USR2"):
        SlurmSettings.from_config({"signal": name})
