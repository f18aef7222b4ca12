"""torch's libraries are loaded while other modules are imported, and its import then finds them."""

from __future__ import annotations

import json
import subprocess
import sys

LOADED = """
import gc, json, os, sys
import launcher.commands.run
from launcher import env, process
from launcher.faststart import library_load
before = env.environment()
assert library_load.possible()
with library_load.loading():
    from launcher.faststart import overlapped_import
    inside = env.get("OMP_NUM_THREADS")
found = {
    "library": "libtorch_cpu" in open("/proc/self/maps").read(),
    "torch": "torch" in sys.modules,
    "threads": process.num_threads(),
    "inside": inside,
    "environment": env.environment() == before,
}
from launcher.agent import fork_server
fork_server.preload(("torch", "torch.distributed"))
fork_server.check_forkable()
found["looked through"], found["frozen"] = len(gc.get_objects()), gc.get_freeze_count()
import torch
pid = os.fork()
if pid == 0:
    os._exit(0 if torch.ones(3).sum().item() == 3 else 1)
found["fork"] = os.waitpid(pid, 0)[1]
found["possible"] = library_load.possible()
print(json.dumps(found))
"""

PLAIN = """
import json, sys
import torch.distributed
import launcher.faststart.overlapped_import
from launcher.faststart import library_load
every = {*library_load.WITH_LIBRARIES, *library_load.WITHOUT}
print(json.dumps(sorted(every - {*sys.modules, *sys.builtin_module_names})))
"""


def said(code: str) -> object:
    words = [sys.executable, "-P", "-c", code]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True, timeout=300).stdout)


def test_libraries_are_loaded_before_torch_is_imported_and_the_process_can_fork() -> None:
    found = said(LOADED)
    assert isinstance(found, dict)
    assert found.pop("frozen") > 20 * found.pop("looked through")  # a collection leaves out what was imported
    assert found == {
        "library": True,
        "torch": False,
        "threads": 1,
        "inside": "1",
        "environment": True,
        "fork": 0,
        "possible": False,
    }


def test_nothing_is_imported_that_torch_or_a_start_does_not_import() -> None:
    assert said(PLAIN) == []
