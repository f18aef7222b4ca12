"""A script as people write them: it takes eight seconds to save when it is asked to stop, and goes on from there.

saves_slowly.py FOLDER: ten steps after it has come back. Without torch, and without anything of the launcher.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

folder, rank = Path(sys.argv[1]), os.environ["RANK"]
state = folder / f"state-{rank}.json"
done = json.loads(state.read_text())["done"] if state.exists() else []


def save(number, frame):
    time.sleep(8)
    folder.mkdir(exist_ok=True)
    partial = state.with_suffix(".partial")
    came = [*(json.loads(state.read_text())["came"] if state.exists() else []), signal.Signals(number).name]
    partial.write_text(json.dumps({"done": done, "came": came}))
    partial.replace(state)
    sys.exit(0)


for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, save)
num_steps = len(done) + 10 if done else 10_000
start = os.environ.get("SLURM_RESTART_COUNT", "0")
while len(done) < num_steps:
    time.sleep(0.5)
    done.append(start)
    print("step", len(done), flush=True)
    if len(done) == 3:
        Path(f"{folder}-runs-{rank}").touch()
Path(f"{folder}-{rank}.json").write_text(json.dumps(done))
