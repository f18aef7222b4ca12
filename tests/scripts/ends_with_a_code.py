"""Habit: an exit code, or a message, that says how it went."""

import os
import sys
import time
from pathlib import Path

rank = os.environ["RANK"]
Path(f"came-{rank}").touch()
while not Path(f"came-{1 - int(rank)}").exists():  # a rank that has not come yet is ended when another fails
    time.sleep(0.05)
if rank == "1" and sys.argv[1] != "0":
    sys.exit("this is the end")
os._exit(int(sys.argv[1])) if len(sys.argv) > 2 else sys.exit(int(sys.argv[1]))
