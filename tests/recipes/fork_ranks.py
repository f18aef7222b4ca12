"""Runs a recipe in the ranks of several nodes that are all this machine: fork_ranks.py SCRIPT NODES RANKS PORT.

Imports once and forks, as the launcher's own agent does on one node. Ends with the worst exit code.
"""

from __future__ import annotations

import os
import runpy
import sys
import traceback

import launcher.worker.session  # noqa: F401  (what every rank would import)


def main(script: str, num_nodes: int, ranks_per_node: int, port: str) -> int:
    world_size = num_nodes * ranks_per_node
    pids = []
    for rank in range(world_size):
        pid = os.fork()
        if pid == 0:
            node, local_rank = divmod(rank, ranks_per_node)
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "GROUP_RANK": str(node)}
            os.environ |= {"LOCAL_RANK": str(local_rank), "LOCAL_WORLD_SIZE": str(ranks_per_node)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            code = 1
            try:
                runpy.run_path(script, run_name="__main__")
                code = 0
            except SystemExit as ended:
                code = int(ended.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        pids.append(pid)
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
