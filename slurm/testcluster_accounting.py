"""Accounting for slurm/testcluster: mariadbd and slurmdbd, so that sacct works. Everything in the cluster's folder."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("mariadbd", "mariadb-install-db", "mariadb", "slurmdbd")
WAIT_S = 30.0
SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={dir}/run/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser={user}
PidFile={dir}/run/slurmdbd.pid
LogFile={dir}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser={user}
StorageLoc=slurm_acct_db
"""
# The connection to slurmdbd ignores AuthInfo: without the Pass line it looks for munge's default socket.
SLURM_LINES = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={port}
AccountingStoragePass={dir}/run/munge.socket
AccountingStorageTRES=gres/gpu"""


class Accounting:
    """The database and slurmdbd of one cluster; munged has to run before `start`."""

    def __init__(self, folder: Path, port: int) -> None:
        self.dir, self.port = folder, port
        self.db = folder / "db"
        self.user = os.environ.get("USER") or "root"

    def slurm_lines(self) -> str:
        """What slurm.conf needs."""
        return SLURM_LINES.format(dir=self.dir, port=self.port)

    def start(self) -> None:
        self.db.mkdir(exist_ok=True)
        self._start_database()
        conf = self.db / "slurmdbd.conf"  # slurmdbd reads it from the folder of SLURM_CONF
        conf.touch(mode=0o600)  # anything wider is fatal
        conf.write_text(SLURMDBD_CONF.format(dir=self.dir, port=self.port, user=self.user))
        (self.db / "slurm.conf").write_text("ClusterName=lab\nSlurmctldHost=localhost\n")
        # libmariadb takes the socket from the environment
        variables = {"SLURM_CONF": str(self.db / "slurm.conf"), "MYSQL_UNIX_PORT": str(self.db / "mysql.sock")}
        self._call("slurmdbd", **variables)  # it forks before it listens, and slurmctld needs its answer to start
        self._wait("slurmdbd", self._listens)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _wait(self, name: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not ready():
            if time.monotonic() > deadline:
                raise OSError(f"{name} did not start: see {self.dir}/log/{name}.*")
            time.sleep(0.05)

    def _start_database(self) -> None:
        data, path = self.db / "data", self.db / "mysql.sock"
        if not (data / "mysql").is_dir():
            auth = "--auth-root-authentication-method=socket"
            self._call("mariadb-install-db", "--no-defaults", f"--user={self.user}", f"--datadir={data}", auth)
        argv = [
            "mariadbd", "--no-defaults", f"--user={self.user}", f"--datadir={data}", f"--socket={path}",
            f"--pid-file={self.dir}/run/mariadbd.pid", "--skip-networking", "--innodb-buffer-pool-size=64M",
            "--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900",
        ]  # fmt: skip
        with (self.dir / "log" / "mariadbd.out").open("ab") as log:
            subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        ask = ["mariadb", "--no-defaults", f"--socket={path}", "-e", "CREATE DATABASE IF NOT EXISTS slurm_acct_db"]
        self._wait("mariadbd", lambda: subprocess.run(ask, capture_output=True).returncode == 0)

    def _call(self, *argv: str, **variables: str) -> None:
        with (self.dir / "log" / f"{argv[0]}.out").open("ab") as log:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **variables}
            )
        if done.returncode:
            raise OSError(f"{argv[0]} failed: see {self.dir}/log/{argv[0]}.out")
