"""The floor of a cold start: import torch in one process, fork the ranks, run the script. Nothing is supervised.

python tests/benchmarks/bare_fork.py RANKS SCRIPT [ARGS]
"""

from __future__ import annotations

import os
import runpy
import socket
import sys


def main(ranks: int, script: str, args: list[str]) -> int:
    import torch.distributed  # noqa: F401 (what is measured)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    pids = []
    for rank in range(ranks):
        if (pid := os.fork()) == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            sys.argv = [script, *args]
            runpy.run_path(script, run_name="__main__")
            os._exit(0)
        pids.append(pid)
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
