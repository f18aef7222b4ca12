"""A job of a local sweep: notes when it ran and on what, may fail. It and a neighbour end when each has seen the other.

Where none comes, it ends after as many seconds as its second argument says.
"""

import os
import sys
import time
from pathlib import Path

notes, number = Path(sys.argv[1]), int(Path(os.environ["LAUNCHER_RUN_DIR"]).name)
where = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, sorted(os.sched_getaffinity(0))))
mine = notes / f"running-{number}"
mine.write_text(where)
begin, seen, was_seen = time.monotonic(), 1, False
while not was_seen and time.monotonic() < begin + float(sys.argv[2]):
    time.sleep(0.05)
    was_seen = any(notes.glob(f"{number}-seen-by-*"))  # first: who has seen this one is running still
    running = [int(file.name.rpartition("-")[2]) for file in notes.glob("running-*")]
    seen = max(seen, len(running))
    for other in {*running} - {number}:
        (notes / f"{other}-seen-by-{number}").touch()
(notes / f"seen-{number}").write_text(f"{where} {seen} {begin} {time.monotonic()}")
mine.unlink()
sys.exit(3 if number == 1 else 0)
