"""Which cores a rank runs on, and that it does."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import preloaded
import pytest

from launcher.agent.binding import bind, core_list, near_gpus, ranges, read_siblings
from launcher.agent.fork_server import _bind
from launcher.cluster.commands import Output
from launcher.errors import LauncherError

ALL = list(range(16))  # two sockets of four cores, two threads each: core 0 has threads 0 and 8
SIBLINGS = {core: core % 8 for core in ALL}
LEFT, RIGHT = frozenset([0, 1, 2, 3, 8, 9, 10, 11]), frozenset([4, 5, 6, 7, 12, 13, 14, 15])
UNKNOWN = frozenset[int]()
TOPO = """\
\tGPU0\tGPU1\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID
GPU0\t X \tNV12\t0-3,8-11\t0\tN/A
GPU1\tNV12\t X \t4-7,12-15\t1\tN/A
"""


def test_numa_gives_a_rank_the_cores_near_its_gpu() -> None:
    found = bind("numa", allowed=ALL, near=[LEFT, LEFT, RIGHT, RIGHT], siblings=SIBLINGS)
    assert [frozenset(cores) for cores in found.cores] == [LEFT, LEFT, RIGHT, RIGHT]
    assert found.describe() == "cores of local ranks: 0 on 0-3,8-11, 1 on 0-3,8-11, 2 on 4-7,12-15, 3 on 4-7,12-15"


def test_cores_gives_each_rank_whole_cores_of_its_own() -> None:
    found = bind("cores", allowed=ALL, near=[LEFT, LEFT, RIGHT, RIGHT], siblings=SIBLINGS)
    assert found.cores == ((0, 1, 8, 9), (2, 3, 10, 11), (4, 5, 12, 13), (6, 7, 14, 15))


def test_without_gpus_cores_are_shared_out_among_all_ranks() -> None:
    assert bind("cores", allowed=ALL, near=[UNKNOWN] * 3, siblings=SIBLINGS).cores == (
        (0, 1, 2, 8, 9), (3, 4, 10, 11, 12), (5, 6, 7, 13, 14))  # fmt: skip
    few = bind("cores", allowed=[0, 1], near=[UNKNOWN] * 3, siblings=SIBLINGS)
    assert few.cores == ((), (), ())
    assert "2 cores are too few for 3 ranks" in few.describe()


def test_cores_outside_of_this_jobs_are_left_alone() -> None:
    assert bind("numa", allowed=[0, 1, 4], near=[LEFT, RIGHT], siblings=SIBLINGS).cores == ((0, 1), (4,))


def test_auto_binds_where_the_gpus_places_are_known_and_none_never() -> None:
    assert bind("auto", allowed=ALL, near=[LEFT, RIGHT], siblings=SIBLINGS).cores[0] == tuple(sorted(LEFT))
    for mode, near in (("auto", [LEFT, UNKNOWN]), ("none", [LEFT, RIGHT])):
        found = bind(mode, allowed=ALL, near=near, siblings=SIBLINGS)
        assert found.cores == ((), ())
        assert found.describe() == ""
    assert (
        "near the GPU of local rank 1" in bind("numa", allowed=ALL, near=[LEFT, UNKNOWN], siblings=SIBLINGS).describe()
    )


@pytest.mark.parametrize(("text", "found"), [(TOPO, [RIGHT, LEFT]), ("", [UNKNOWN, UNKNOWN]), (None, [UNKNOWN] * 2)])
def test_nvidia_smi_says_what_is_near(text: str | None, found: list[frozenset[int]]) -> None:
    assert near_gpus([1, 0], lambda argv: Output(text)) == found


@pytest.mark.parametrize("text", ["0", "0-3,8-11", "5,7,9-10"])
def test_lists_of_cores_read_back(text: str) -> None:
    assert ranges(sorted(core_list(text))) == text
    assert core_list("N/A") == core_list("") == frozenset()


def test_this_machine_says_which_threads_share_a_core() -> None:
    here = sorted(os.sched_getaffinity(0))
    assert set(read_siblings(here)) == set(here)


def test_a_rank_that_gets_other_cores_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: None)
    with pytest.raises(LauncherError, match=r"should be bound to cores \[4095\]"):
        _bind([4095])


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="binds two ranks to a core each")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_every_rank_and_its_children_run_on_their_cores(tmp_path: Path, method: str) -> None:
    (tmp_path / "train.py").write_text(
        "import json, os, subprocess, sys\n"
        "child = [sys.executable, '-c', 'import os; print(sorted(os.sched_getaffinity(0)))']\n"
        "said = [sorted(os.sched_getaffinity(0)), json.loads(subprocess.check_output(child))]\n"
        "open(f\"cores-{os.environ['RANK']}\", 'w').write(json.dumps(said))\n"
    )
    words = ["script=train.py", "run_dir=run", "launch.nproc_per_node=2", "launch.bind=cores", f"launch.start={method}"]
    command = [sys.executable, "-P", "-m", "launcher.cli", "run", *words, "launch.warm=never"]
    done = preloaded.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "cores of local ranks: 0 on " in done.stderr
    ranks = [json.loads((tmp_path / f"cores-{rank}").read_text()) for rank in range(2)]
    assert all(own == child for own, child in ranks)
    assert not set(ranks[0][0]) & set(ranks[1][0])
    dry = preloaded.run([*command, "dry_run=true"], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert "cores of local ranks: 0 on " in dry.stderr
    assert "GLOO_SOCKET_IFNAME=lo: one node" in dry.stderr
