"""What a shell passes to a job: neither another job's variables nor secrets; every omission is reported."""

from __future__ import annotations

import os
import signal

import pytest

from launcher.cluster.commands import query_environment
from launcher.slurm import submit
from launcher.slurm.environment import kept_from_sbatch, of_step
from launcher.slurm.jobstate import JobState
from launcher.slurm.requeue import Outcome
from launcher.slurm.settings import SlurmSettings
from launcher.slurm.start import ShellSignals, exit_code

OUTER = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_GPUS": "3", "SLURM_GPUS_PER_TASK": "1"}
BY_HAND = {"SLURM_HINT": "nomultithread", "SLURM_CPU_BIND": "cores", "SBATCH_ARRAY_INX": "0-3", "SRUN_DEBUG": "3"}
PASSED = {"SLURM_CONF": "/etc/slurm.conf", "SBATCH_ACCOUNT": "phys", "SBATCH_PARTITION": "gpu", "PATH": "/bin"}


def test_sbatch_gets_no_variable_that_would_change_the_job() -> None:
    devices = {"CUDA_VISIBLE_DEVICES": "0"}
    assert set(kept_from_sbatch([*OUTER, *BY_HAND, *PASSED, *devices])) == {*OUTER, *BY_HAND, *devices}


def test_srun_gets_the_job_and_nothing_that_would_change_the_step() -> None:
    of_job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_RESTART_COUNT": "2", "SLURMD_NODENAME": "n1"}
    changing = {
        **BY_HAND, "SLURM_GPUS": "3", "SLURM_GPUS_PER_TASK": "1", "SLURM_NTASKS_PER_NODE": "8", "SLURM_TIMELIMIT": "1",
        "SLURM_CPUS_PER_TASK": "1", "SLURM_DISTRIBUTION": "arbitrary", "SLURM_HOSTFILE": "/x", "SLURM_MEM_PER_CPU": "1",
        "SLURM_TRES_PER_TASK": "gpu:1", "SLURM_EXPORT_ENV": "NONE", "SLURM_GPU_BIND": "single:1",
    }  # fmt: skip
    others = {"SLURM_CONF": "/etc/slurm.conf", "PATH": "/bin"}
    assert of_step({**of_job, **changing, **PASSED}) == {**of_job, **others}


def test_what_launch_extra_asked_sbatch_for_reaches_the_step() -> None:
    assert of_step(BY_HAND, extra=["--hint=nomultithread", "--nice=1"]) == {"SLURM_HINT": "nomultithread"}


@pytest.mark.parametrize("in_job", [None, "7"])
def test_what_stays_behind_is_said_in_one_line_each(monkeypatch: pytest.MonkeyPatch, in_job: str | None) -> None:
    here = {"HF_TOKEN": "x", "DB_PASS": "y", "TOKENIZER_PATH": "/t", **BY_HAND, **(OUTER if in_job else {})}
    monkeypatch.setattr("launcher.env.environment", lambda: here)
    monkeypatch.setattr("launcher.env.get", here.get)
    secrets, others = submit.left_behind(SlurmSettings())
    assert secrets.startswith("DB_PASS, HF_TOKEN stay behind")
    assert "launch.secrets=[DB_PASS]" in secrets
    assert ("SLURM_HINT" in others) is (in_job is None)
    assert ("job 7, which this shell is in" in others) is (in_job is not None)
    assert "SBATCH_ARRAY_INX" in others
    assert submit.left_behind(SlurmSettings(secrets=("HF_TOKEN", "DB_PASS"))) == [others]
    assert submit.left_behind(SlurmSettings(export="none")) == [others]


def test_the_user_s_own_filters_do_not_change_what_slurm_s_look_ups_say(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SQUEUE_USERS", "SINFO_FORMAT", "SACCT_FORMAT", "SLURM_TIME_FORMAT"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    found = query_environment()
    assert not {"SQUEUE_USERS", "SINFO_FORMAT", "SACCT_FORMAT", "SLURM_TIME_FORMAT"} & set(found)
    assert found["SLURM_CONF"] == "/etc/slurm.conf"


def test_a_shell_in_an_allocation_listens_to_its_terminal_and_to_the_signals_of_the_key() -> None:
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    shell = ShellSignals("USR1", numbers=[signal.SIGUSR2])
    shell.in_step = True
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        shell.listen()
        for number in numbers:
            os.kill(os.getpid(), number)
        assert shell.stop == 4
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
        shell.listen()
        os.kill(os.getpid(), signal.SIGHUP)
        assert shell.stop == 4
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_step_that_slurm_has_killed_is_a_failed_run_and_a_ranks_own_code_is_handed_on() -> None:
    running, ending = JobState("RUNNING"), JobState("CANCELLED")
    lost = Outcome(137, signalled=False, lost_nodes=("node9",))
    assert [exit_code(lost, running), exit_code(Outcome(137, False), ending), exit_code(Outcome(0, False), ending)] == [
        1,
        1,
        0,
    ]
    assert exit_code(Outcome(75, False), running) == 75  # launch.exit_code=first
