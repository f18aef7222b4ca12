"""Runs over a real ssh: they learn as a run here does, and end as documented, with nothing left on any host."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import preloaded
import pytest
from ssh_hosts import NAMES, ROOT, Hosts

from launcher import process

pytestmark = pytest.mark.slow

SECRET = "0123456789abcdef0123456789abcdef01234567"
RUN = [sys.executable, "-P", "-m", "launcher.cli", "run"]
GPT = ["train.steps=3", "layout.tp=2", "layout.pp=2", "layout.dp=1", "layout.micro_batch=2", "layout.virtual_stages=1"]
STEPPER = ROOT / "tests" / "slurm" / "stepper.py"
FIRST, SECOND = NAMES


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(hosts: Hosts) -> Iterator[Start]:
    """Starts a stepper of one rank on each host."""
    jobs: list[subprocess.Popen[str]] = []

    def started(run: Path, *words: str, options: list[str] | None = None) -> subprocess.Popen[str]:
        argv = [
            *RUN,
            *(options or hosts.options),
            "launch.nproc_per_node=1",
            f"script={STEPPER}",
            f"run_dir={run}",
            *words,
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_API_KEY": SECRET}
        pipe = subprocess.PIPE
        jobs.append(preloaded.Popen(argv, env=environment, cwd=run.parent, text=True, stdout=pipe, stderr=pipe))
        return jobs[-1]

    yield started
    for job in jobs:
        if job.poll() is None:
            job.kill()  # every host ends what it has
            job.communicate(timeout=200)


def steps(run: Path) -> list[dict[str, int]]:
    file = run / "steps.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_for_step(run: Path, step: int, job: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not any(line["step"] >= step for line in steps(run)):
        assert time.monotonic() < deadline and job.poll() is None, job.communicate(timeout=100)
        time.sleep(0.1)


def left(run: Path) -> list[str]:
    """Processes of a run on this machine, its hosts' included."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(run) in words + (entry / "environ").read_text(errors="replace"):
                    found.append(words)
            except OSError:
                continue
    return found


def assert_nothing_left(run: Path, *, within_s: float = 120) -> None:
    deadline = time.monotonic() + within_s
    while found := left(run):
        assert time.monotonic() < deadline, found
        time.sleep(0.2)


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_gpt_on_two_hosts_learns_as_it_does_here_and_no_secret_goes_along(hosts: Hosts, tmp_path: Path) -> None:
    run, local = tmp_path / "over ssh $(touch pwned) 'q'", tmp_path / "local"
    environment = {**os.environ, "WANDB_API_KEY": SECRET}
    argv = [*RUN, *hosts.options, "launch.nproc_per_node=2", *GPT, f"run_dir={run}"]
    done = preloaded.run(argv, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["losses"]["last"] == pytest.approx(losses(run)[-1], abs=1e-4)
    assert [json.loads((run / "nodes" / f"node-{n}.json").read_text())["host"] for n in range(2)] == list(NAMES)
    alone = ["layout.tp=1", "layout.pp=1", "layout.dp=1", "layout.micro_batch=2"]
    here = [*RUN, "launch=local", "launch.nproc_per_node=1", GPT[0], *alone, f"run_dir={local}"]
    preloaded.run(here, cwd=tmp_path, capture_output=True, check=True, timeout=200)
    assert losses(run) == pytest.approx(losses(local), rel=1e-5)
    assert "WANDB_API_KEY stay behind" in done.stderr
    assert subprocess.run(["grep", "-r", "-l", "-a", SECRET, tmp_path], capture_output=True).stdout == b""
    assert not list(tmp_path.rglob("pwned"))
    assert_nothing_left(run)


COPIED = """
import os
from pathlib import Path
import helper
print(helper.WORD, Path("data/x").read_text().strip(), Path.cwd() == Path(__file__).parent, flush=True)
"""


def test_a_copy_of_the_code_goes_to_a_host_that_does_not_share_the_run_folder(hosts: Hosts, tmp_path: Path) -> None:
    """The first host shares it, and is sent nothing; the second has an empty folder with data of its own there."""
    work, run = tmp_path / "my work", tmp_path / "run"
    (work / "data").mkdir(parents=True)
    for name, text in {
        "train.py": COPIED,
        "helper.py": "WORD = 'sent'",
        "data/x": "near",
        ".gitignore": "data",
    }.items():
        (work / name).write_text(text)
    subprocess.run(["git", "init", "-q", work], check=True)
    (work / "noise.bin").write_bytes(os.urandom(3 << 20))  # more than a pipe takes at once
    assert hosts.ssh(SECOND, f"mount -t tmpfs none {tmp_path}").returncode == 0
    assert hosts.ssh(SECOND, f"mkdir -p '{work}/data' && echo far > '{work}/data/x'").returncode == 0
    try:
        argv = [*RUN, *hosts.options, "launch.nproc_per_node=1", "script=train.py", f"run_dir={run}"]
        without = preloaded.run(argv, cwd=work, capture_output=True, text=True, timeout=100)
        assert without.returncode == 2, without.stderr
        assert "there is no script" in without.stderr
        argv += ["launch.snapshot=true"]
        done = preloaded.run(argv, cwd=work, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "sent near True\n"
        assert hosts.ssh(SECOND, f"tail -n 1 {run}/logs/rank-1.log").stdout == "sent far True\n"
        assert "code: 4 files, packed 3.0 MiB, to hosts that need it" in done.stderr
        assert hosts.ssh(SECOND, f"ls -A {run}").stdout.split().count("code-for-node-1") == 0
        assert not list(run.glob("code-for-node-*"))
    finally:
        hosts.ssh(SECOND, f"umount {tmp_path}")
    assert_nothing_left(run)


UNEVEN = """
import os, sys
from pathlib import Path
import torch, torch.distributed as dist
place = {name: int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")}
dist.init_process_group("gloo")
total = torch.tensor(float(place["RANK"]))
dist.all_reduce(total)
if place["WORLD_SIZE"] == 3 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    sys.exit(place["RANK"] == 2)
run, interface = Path(os.environ["LAUNCHER_RUN_DIR"]), os.environ.get("GLOO_SOCKET_IFNAME")
(run / f"place-{place['RANK']}").write_text(f"{place} {total.item()} {os.environ['LAUNCHER_DP']} {interface}")
dist.destroy_process_group()
"""


def test_hosts_with_different_numbers_of_slots_run_plain_data_parallelism(hosts: Hosts, tmp_path: Path) -> None:
    """It starts again after a failure, too."""
    (tmp_path / "train.py").write_text(UNEVEN)
    run, slots = tmp_path / "uneven", f"launch.hosts=[{FIRST}:1,{SECOND}:2]"
    words = [word for word in hosts.options if not word.startswith("launch.hosts=")]
    words += ["cluster.node.interface=eth0"]  # which is not this machine's, but that of each host
    argv = [*RUN, *words, slots, "launch.max_restarts=1", "script=train.py", f"run_dir={run}"]
    done = preloaded.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    place = {"RANK": 0, "WORLD_SIZE": 3, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "GROUP_RANK": 0}
    assert (run / "place-0").read_text() == f"{place} 3.0 3 eth0"
    for rank in (1, 2):
        place |= {"RANK": rank, "LOCAL_RANK": rank - 1, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 1}
        assert (run / f"place-{rank}").read_text() == f"{place} 3.0 3 eth0"
    states = [json.loads((run / "nodes" / f"node-{node}.json").read_text())["ranks"] for node in range(2)]
    assert [sorted(ranks) for ranks in states] == [["0"], ["1", "2"]] or states == [{}, {}]
    assert_nothing_left(run)


def test_hosts_that_have_ipv6_addresses_alone(hosts6: Hosts, tmp_path: Path) -> None:
    """The first by its name, the second by its address."""
    (tmp_path / "train.py").write_text(UNEVEN)
    run, slots = tmp_path / "six", f"launch.hosts=[{FIRST}:1,[{hosts6.address(1)}]:1]"
    words = [word for word in hosts6.options if not word.startswith("launch.hosts=")]
    argv = [*RUN, *words, slots, "script=train.py", "cluster.node.interface=ib0"]
    done = preloaded.run([*argv, f"run_dir={run}"], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert [(run / f"place-{rank}").read_text()[-10:] for rank in (0, 1)] == ["1.0 2 None", "1.0 2 None"]
    absent = "cluster.node.interface is ib0, and this machine has lo, eth0; not set: GLOO_SOCKET_IFNAME"
    assert done.stderr.count(absent) == 2, done.stderr
    states = [json.loads((run / "nodes" / f"node-{node}.json").read_text()) for node in range(2)]
    assert [state["host"] for state in states] == [FIRST, SECOND]
    assert_nothing_left(run)


def agent_in(network: str) -> int:
    """The agent's process on a host: hosts share their processes and differ by their network's namespace."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # of a process that has ended
            words = (folder / "cmdline").read_text().split("\0")
            if "launcher.ssh.node" in words and (folder / "ns/net").readlink().name == network:
                found.append(int(folder.name))
    pythons = [pid for pid in found if "python" in Path(f"/proc/{pid}/exe").readlink().name]
    below = {child for pid in pythons for child in process.descendants(pid)}
    (agent,) = set(pythons) - below
    return agent


@pytest.mark.parametrize("how", ["cancel", "Ctrl-C"])
def test_a_run_that_is_stopped_ends_at_a_step_on_every_host(
    hosts: Hosts, start: Start, tmp_path: Path, how: str
) -> None:
    run = tmp_path / "stopped"
    job = start(run, "--", "5000")
    wait_for_step(run, 3, job)
    commands = [words for words in left(run) if "launcher" in words]
    assert commands and not any(SECRET in words or "LAUNCHER_SECRET" in words for words in commands)
    if how == "cancel":
        preloaded.run([*RUN[:-1], "cancel", str(run)], check=True, capture_output=True, timeout=200)
    else:
        job.send_signal(signal.SIGINT)
    _, said = job.communicate(timeout=200)
    assert job.returncode == 1, said
    states = [json.loads((run / "nodes" / f"node-{n}.json").read_text())["state"] for n in range(2)]
    assert states == ["cancelled" if how == "cancel" else "stopped"] * 2
    assert list((run / "checkpoints").iterdir()), "the stepper saves when it is asked to stop"
    assert_nothing_left(run)


def test_a_launcher_that_is_killed_leaves_nothing_on_any_host(hosts: Hosts, start: Start, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    job = start(run, "--", "5000")
    wait_for_step(run, 3, job)
    job.kill()
    assert_nothing_left(run)
    job.communicate(timeout=100)


def test_a_killed_agent_is_started_again_and_the_run_goes_on_from_its_checkpoint(
    hosts: Hosts, start: Start, tmp_path: Path
) -> None:
    run = tmp_path / "again"
    network = hosts.ssh(SECOND, "readlink /proc/self/ns/net").stdout.strip()
    job = start(run, "launch.max_restarts=1", "--", "30", "checkpoint-every=5")
    wait_for_step(run, 7, job)
    os.kill(agent_in(network), signal.SIGKILL)
    _, said = job.communicate(timeout=120)
    assert job.returncode == 0, said
    assert f"{SECOND} was lost (its agent was killed): dialling it again" in said
    assert [line["step"] for line in steps(run)].count(5) == 1
    assert steps(run)[-1] == {"step": 30, "start": 0, "world": 2}
    assert_nothing_left(run)


def test_a_cut_link_ends_the_run_on_both_sides(hosts: Hosts, start: Start, tmp_path: Path) -> None:
    run = tmp_path / "cut"
    job = start(run, "--", "5000", options=hosts.impatient)
    wait_for_step(run, 3, job)
    hosts.cut(SECOND)
    try:
        _, said = job.communicate(timeout=200)
        assert job.returncode == 1
        assert f"{SECOND} was lost (ssh ended with 255): ending the run" in said
        assert_nothing_left(run)  # the host that nobody reaches finds out by itself
    finally:
        hosts.mend(SECOND)


def test_a_killed_host_ends_the_run(hosts: Hosts, start: Start, tmp_path: Path) -> None:
    run = tmp_path / "host"
    job = start(run, "--", "5000", options=hosts.impatient)
    wait_for_step(run, 3, job)
    hosts.kill_host(FIRST)
    _, said = job.communicate(timeout=200)
    assert job.returncode == 1
    assert f"{FIRST} was lost (ssh ended with 255): ending the run" in said
    assert_nothing_left(run)
