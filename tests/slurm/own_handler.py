"""A script with a handler of its own, which takes 8 s to save; then it ends.

own_handler.py FOLDER: steps of 0.2 s until a signal comes, or FOLDER/end exists.
FOLDER gets steps.jsonl, the checkpoint of each rank, and the signals that came, each with the start that it was in.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

SAVE_S, STEP_S = 8.0, 0.2
HANDLED = (signal.SIGTERM, signal.SIGUSR1)


class Training:
    """Steps that are counted and noted in one go: no signal comes in between."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self.rank = folder, rank
        self.checkpoint = folder / "saved" / f"rank-{rank}.json"
        self.start = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        self.step = int(json.loads(self.checkpoint.read_text())) if self.checkpoint.exists() else 0

    def do_step(self) -> None:
        time.sleep(STEP_S)
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        self.step += 1
        self.note("steps.jsonl", {"step": self.step})
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)

    def save_and_leave(self, number: int, _: FrameType | None) -> None:
        self.note("signals.jsonl", {"signal": signal.Signals(number).name})
        time.sleep(SAVE_S)
        new = self.checkpoint.with_suffix(".new")
        new.write_text(json.dumps(self.step))
        new.rename(self.checkpoint)
        sys.exit(0)

    def note(self, name: str, line: dict[str, object]) -> None:
        with (self.folder / name).open("a") as file:
            file.write(json.dumps({"rank": self.rank, "start": self.start, **line}) + "\n")


def main() -> None:
    folder = Path(sys.argv[1])
    (folder / "saved").mkdir(exist_ok=True)
    training = Training(folder, int(os.environ["RANK"]))
    for number in HANDLED:
        signal.signal(number, training.save_and_leave)
    while not (folder / "end").exists():
        training.do_step()


if __name__ == "__main__":
    main()
