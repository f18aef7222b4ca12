"""One test cluster for all tests that ask for it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import preloaded
import pytest
from slurm_lab import NEEDED, ONE_RANK, PATH, SMALL, Slurm, losses, one_cluster

RUNNING = pytest.StashKey[tuple[Slurm, ExitStack]]()


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Slurm:
    """One cluster for the tests that follow each other, in whatever module; each restores what it changes there."""
    missing = [name for name in NEEDED if not shutil.which(name, path=PATH)]
    if missing:
        pytest.skip(f"no Slurm here ({', '.join(missing)} missing): see slurm/testcluster --help for what to install")
    if os.geteuid() != 0:
        pytest.skip("slurm/testcluster needs root: it gives every node a host name of its own")
    stash = request.config.stash
    if RUNNING not in stash:
        with ExitStack() as stack:
            slurm = stack.enter_context(one_cluster())
            stash[RUNNING] = slurm, stack.pop_all()
        request.config.add_cleanup(stash[RUNNING][1].close)  # where the tests are broken off
    return stash[RUNNING][0]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Stop the cluster after the last of the tests on it."""
    try:
        yield
    finally:
        goes_on = nextitem is not None and nextitem.get_closest_marker("slurm")
        if not goes_on and RUNNING in item.config.stash:
            item.config.stash[RUNNING][1].close()
            del item.config.stash[RUNNING]


@pytest.fixture(scope="session")
def losses_here(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Those of SMALL in one rank on this machine, without Slurm."""
    run = tmp_path_factory.mktemp("here") / "run"
    argv = [sys.executable, "-m", "launcher.cli", "run", "cluster=cpu", *SMALL, *ONE_RANK, f"run_dir={run}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = preloaded.run(argv, cwd=run.parent, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return losses(run)


@pytest.fixture
def slurm(cluster: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    """The cluster with idle nodes, which this process too takes for its own."""
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, cluster.environment[name])
    yield Slurm(cluster.folder, tmp_path)
    cluster.clear()
