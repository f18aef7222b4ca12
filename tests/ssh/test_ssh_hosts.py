"""What people write for hosts, and the exact command that ssh gets: pure, without ssh."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.errors import InputError
from launcher.ssh.hosts import Host, parse_host, read_hostfile, slots_of
from launcher.ssh.keeper import LOST, NEEDS_CODE, reported
from launcher.ssh.request import Hello, host_name, job_variables, read_hello, ssh_argv
from launcher.ssh.settings import SshSettings

HELLO = Hello(
    node=1, name="n2", num_nodes=2, run_id="r", coordinator="n1:20000", run_folder="/r", work_dir="/w",
    variables={"A": "é\n'"}, files={"plan.json": "{}\n"}, secret="s3cret",
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("n1", Host(name="n1")),
        ("me@n1.cluster.org:8", Host(name="n1.cluster.org", user="me", slots=8)),
        ("::1", Host(name="::1")),
        ("[fe80::1%eth0]:4", Host(name="fe80::1%eth0", slots=4)),
        ("me@10.0.0.7:2", Host(name="10.0.0.7", user="me", slots=2)),
    ],
)
def test_a_host_is_read_as_people_write_it(text: str, host: Host) -> None:
    assert parse_host(text) == host


@pytest.mark.parametrize(
    "text", ["-oProxyCommand=x", "n1:0", "n1:x", "a b", "me@-x", "n1;reboot", "a@b@c", "", "1:2:3::4::5"]
)
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"has '.*'"):
        parse_host(text)


def test_a_hostfile_is_read_as_mpirun_deepspeed_and_mpich_take_it() -> None:
    text = "# two\nn1 slots=8 max_slots=8\n\nme@n2:8 port=2222  # the other\n::1 slots=8 user=you\n"
    assert read_hostfile(text, name="f") == (
        Host(name="n1", slots=8),
        Host(name="n2", user="me", port=2222, slots=8),
        Host(name="::1", user="you", slots=8),
    )
    with pytest.raises(InputError) as caught:
        read_hostfile("n1 slots=x\nn2\nn3 gpus=4\n", name="f")
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["f, line 1", "f, line 3"]
    with pytest.raises(InputError, match="names no host"):
        read_hostfile("# nothing\n", name="f")


def test_slots_are_said_of_all_hosts_or_none_and_a_host_comes_once() -> None:
    assert slots_of([Host(name="a", slots=4), Host(name="b", slots=2)]) == (4, 2)
    assert slots_of([Host(name="a"), Host(name="b")]) is None
    with pytest.raises(InputError, match="said of some hosts only"):
        slots_of([Host(name="a", slots=4), Host(name="b")])
    with pytest.raises(InputError, match="more than once"):
        SshSettings.from_config({"hosts": ["a", "me@a"]}).all_hosts()
    for keys in ({}, {"hosts": ["a"], "hostfile": "f"}):
        with pytest.raises(InputError, match=r"launch\.hostfile=FILE, and"):
            SshSettings.from_config(keys).all_hosts()


def test_the_command_has_the_user_s_options_first_and_nothing_of_the_job() -> None:
    settings = SshSettings.from_config({"hosts": ["n1"], "ssh_options": "-i 'my key' -o Port=1"})
    argv = ssh_argv(Host(name="n1", user="me", port=2222), settings, python="/a venv/python")
    assert argv[:6] == ("ssh", "-i", "my key", "-o", "Port=1", "-p")
    assert argv[-3:] == ("--", "me@n1", "exec '/a venv/python' -P -m launcher.ssh.keeper")
    assert not any(word in " ".join(argv) for word in (HELLO.secret, HELLO.run_folder, HELLO.coordinator))
    assert HELLO.secret not in repr(HELLO) and "é" not in repr(HELLO)


def test_a_host_hears_exactly_what_is_said_and_only_from_its_own_version() -> None:
    assert read_hello(HELLO.line()) == HELLO
    assert HELLO.line().count(b"\n") == 1
    other = json.dumps(json.loads(HELLO.line()) | {"version": "0.0.1"}).encode()
    with pytest.raises(InputError, match=r"launch\.host_python"):
        read_hello(other)


def test_variables_of_this_host_and_secrets_stay_here() -> None:
    here = {"PATH": "/bin", "HOME": "/me", "SSH_AUTH_SOCK": "/s", "HF_TOKEN": "x", "NCCL_DEBUG": "INFO",
            "CUDA_VISIBLE_DEVICES": "0", "SLURM_JOB_ID": "7"}  # fmt: skip
    given = {"NCCL_DEBUG": "WARN"}
    assert job_variables(here, SshSettings(), given) == {"PATH": "/bin", "NCCL_DEBUG": "WARN"}
    assert job_variables(here, SshSettings(secrets=("HF_TOKEN",), export="none"), given) == {"HF_TOKEN": "x", **given}


def test_the_address_behind_a_host_is_what_ssh_says() -> None:
    assert host_name("user me\nhostname 10.0.0.7\nport 22\n", Host(name="n1")) == "10.0.0.7"
    assert host_name("", Host(name="n1")) == "n1"


UNEVEN = {
    "train.steps=2": "recipes are planned for equal nodes",
    "script=t.py model=gpt_tiny": "an estimate is of equal nodes",
    "script=t.py layout.tp=2": "tp2 pp1 dp3 .* has no place: .* run plain data parallelism",
    "script=t.py launch.nproc_per_node=2": "dp4 .* has no place",
    "script=t.py launch.shrink_to=1": "launch.shrink_to needs equal nodes",
}


@pytest.mark.parametrize("words", UNEVEN)
def test_what_needs_equal_hosts_is_refused_with_the_reason(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.py").write_text("")
    assert main(["run", "launch=ssh", "launch.hosts=[a:2,b:3]", "run_dir=run", *words.split()]) == 2
    err = capsys.readouterr().err
    assert "the hosts have 2, 3 slots" in err
    assert re.search(UNEVEN[words], err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("code", "said"), [(0, 0), (3, 3), (75, 75), (LOST, 1), (NEEDS_CODE, 1), (255, 1)])
def test_exit_codes_of_ranks_are_not_taken_for_those_of_the_connection(
    code: int, said: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reported(code, "n1") == said
    assert ("n1" in capsys.readouterr().err) == (code != said)
