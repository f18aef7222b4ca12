"""A torchrun-compatible script: an all-reduce over gloo, then what its arguments say. Knows nothing of the launcher.

fail=R          rank R raises        exit=R:C  rank R leaves with code C      loop  all-reduce until ended
child           each rank starts a process that would sleep on                plain no process group at all
"""

import json
import os
import subprocess
import sys
import time

rank = int(os.environ["RANK"])
options = dict(argument.partition("=")[::2] for argument in sys.argv[1:])

if "child" in options:
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    print(f"child {child.pid}", flush=True)
if "plain" in options:
    found = {"rank": rank, "name": __name__, "argv": sys.argv, "threads": os.environ["OMP_NUM_THREADS"]}
    began = time.process_time()
    import torch

    print(json.dumps({**found, "import_cpu_s": time.process_time() - began}))
    sys.exit(0)

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

dist.init_process_group("gloo")
total = torch.tensor([float(rank)])
dist.all_reduce(total)
print(f"rank {rank} of {dist.get_world_size()} has {total.item():g}", file=sys.stderr, flush=True)
if int(options.get("fail", -1)) == rank:
    raise ValueError(f"rank {rank} broke on purpose")
if "exit" in options:
    who, code = options["exit"].split(":")
    if int(who) == rank:
        sys.exit(int(code))
while "loop" in options:
    dist.all_reduce(total)
    time.sleep(0.01)
if "fail" in options or "exit" in options:
    dist.all_reduce(total)
if rank == 0:
    print(json.dumps({"sum": total.item(), "master": os.environ["MASTER_ADDR"]}))
dist.destroy_process_group()
