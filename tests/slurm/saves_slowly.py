"""A script as people write them: it takes eight seconds to save when it is asked to stop, and goes on from there.

saves_slowly.py FOLDER STEPS: without torch, and without anything of the launcher.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

folder, num_steps, rank = Path(sys.argv[1]), int(sys.argv[2]), os.environ["RANK"]
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
start = os.environ.get("SLURM_RESTART_COUNT", "0")
while len(done) < num_steps:
    time.sleep(0.5)
    done.append(start)
    print("step", len(done), flush=True)
    if len(done) == 3:
        Path(f"{folder}-runs-{rank}").touch()
Path(f"{folder}-{rank}.json").write_text(json.dumps(done))
