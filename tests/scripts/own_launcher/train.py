"""Habit: modules next to the script, one called launcher, one named like a standard library module."""

import json
import os
import sys
from pathlib import Path

import launcher
import profile
from random_names import NAME

children = [sys.executable, "-c", "import launcher; print(launcher.NAME)"]
found = {
    "launcher": launcher.NAME,
    "through another": NAME,
    "profile": profile.RATE,
    "file": Path(launcher.__file__).name,
}
Path(f"found-{os.environ['RANK']}.json").write_text(json.dumps(found))
