"""A job of a local sweep: notes when it ran and on what, waits for a neighbour if it is to have one, may fail."""

import os
import sys
import time
from pathlib import Path

notes, number = Path(sys.argv[1]), int(Path(os.environ["LAUNCHER_RUN_DIR"]).name)
where = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, sorted(os.sched_getaffinity(0))))
mine = notes / f"running-{number}"
mine.write_text(where)
begin, seen = time.monotonic(), 1
while seen < 2 and time.monotonic() < begin + float(sys.argv[2]):
    seen = max(seen, len(list(notes.glob("running-*"))))
    time.sleep(0.05)
(notes / f"seen-{number}").write_text(f"{where} {seen} {begin} {time.monotonic()}")
time.sleep(0.2)  # so that the neighbour sees this one too
mine.unlink()
sys.exit(3 if number == 1 else 0)
