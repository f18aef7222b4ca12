"""Runs a recipe in a node of its own: rank_of_a_node.py RECIPE ADDRESS HOST, by root.

A network namespace, for which it waits until it has an interface from outside, and a host name.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "slurm"))
from testcluster_network import NODE_NETWORK

NEW_HOST_NAME, NEW_NETWORK = 0x04000000, 0x40000000  # CLONE_NEWUTS, CLONE_NEWNET of linux/sched.h

recipe, address, host = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(NEW_HOST_NAME | NEW_NETWORK):
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
subprocess.run(["sh", "-c", NODE_NETWORK + 'hostname "$4"', "sh", "-", "-", address, host], check=True)
sys.argv = [recipe]
runpy.run_path(recipe, run_name="__main__")
