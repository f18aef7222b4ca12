"""Habit: a script that executes itself again with other variables, by the arguments that it was started with."""

import json
import os
import subprocess
import sys
from pathlib import Path

if "AGAIN" not in os.environ:
    os.environ["AGAIN"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
helper = subprocess.run([sys.executable, "-c", "import sys; print(sys.argv[1:])", "x"], capture_output=True, text=True)
Path(f"again-{os.environ['RANK']}.json").write_text(json.dumps([sys.argv[1:], helper.stdout, os.environ["WORLD_SIZE"]]))
