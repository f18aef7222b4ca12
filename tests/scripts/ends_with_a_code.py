"""Habit: an exit code, or a message, that says how it went."""

import os
import sys
from pathlib import Path

rank = os.environ["RANK"]
Path(f"came-{rank}").touch()
if rank == "1" and sys.argv[1] != "0":
    sys.exit("this is the end")
os._exit(int(sys.argv[1])) if len(sys.argv) > 2 else sys.exit(int(sys.argv[1]))
