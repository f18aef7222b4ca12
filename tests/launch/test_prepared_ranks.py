"""Ranks that are forked before it is known what they run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

DRIVER = """
import json, os, signal, sys, time
from launcher import process
from launcher.agent.fork_server import ForkServer, RankStart

def waiting(server, count):
    while len(found := process.descendants(server.pid)) != count:
        time.sleep(0.005)
    return found

server = ForkServer.start(prepared=3)
killed, *kept = waiting(server, 3)
os.kill(killed, signal.SIGKILL)
waiting(server, 2)
ranks = [
    RankStart(rank, "script", sys.argv[1], ("a b",), {"LOCAL_RANK": str(rank), "LONG": "x" * 300_000}, 1, 2)
    for rank in range(4)
]
pids = server.start_ranks(ranks)
ended = []
while len(ended) < 4:
    ended += server.exits(timeout_s=60)
server.close()
unused = ForkServer.start(prepared=2)
waiting(unused, 2)
unused.close()
print(json.dumps({
    "kept": {pids[0], pids[1]} == {*kept},
    "forked": len({*pids.values()}) == 4 and killed not in pids.values(),
    "codes": sorted(exit.code for exit in ended),
    "left": process.descendants(os.getpid()),
}))
"""
SCRIPT = """
import os, sys
from pathlib import Path
Path(f"rank-{os.environ['LOCAL_RANK']}").write_text(f"{sys.argv[1:]} {len(os.environ['LONG'])}")
sys.exit(int(os.environ["LOCAL_RANK"]))
"""


def test_ranks_that_wait_become_what_they_are_sent_and_one_that_was_killed_is_replaced(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    words = [sys.executable, "-P", "-c", DRIVER, str(script)]
    done = subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=120)
    assert json.loads(done.stdout) == {"kept": True, "forked": True, "codes": [0, 1, 2, 3], "left": []}
    assert done.stderr == ""
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in range(4)] == ["['a b'] 300000"] * 4
