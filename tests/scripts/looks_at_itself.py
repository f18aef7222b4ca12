"""Habit: a script that looks at its own module, arguments, path, streams and limits."""

import json
import logging
import os
import resource
import signal
import sys
import types
from pathlib import Path

import __main__


def kind(value: object) -> str:
    return "None" if value is None else type(value).__name__


sys.stdout.write("half a line")
own = {name: kind(value) for name, value in vars(__main__).items() if name.startswith("__")}
seen = {
    "own": dict(sorted(own.items())),
    "file": __file__,
    "loader": [__loader__.name, __loader__.path],
    "same module": sys.modules["__main__"] is __main__ and vars(__main__) is globals(),
    "of our name": [name for name, value in sys.modules.items() if isinstance(value, types.ModuleType)
                    and getattr(value, "__file__", None) == __file__ and name != "__mp_main__"],
    "argv": [Path(sys.argv[0]).name, *sys.argv[1:]],
    "orig_argv": [sys.orig_argv[1], Path(sys.orig_argv[-len(sys.argv)]).name, *sys.orig_argv[-len(sys.argv) :][1:]],
    "executable": sys.executable,
    "path": sys.path,
    "torch is there": "torch" in sys.modules,
    "streams": [[kind(s), s.name, s.mode, s.encoding, s.errors, s.line_buffering, s.write_through, kind(s.buffer)]
                for s in (sys.stdin, sys.stdout, sys.stderr)],
    "stdin": sys.stdin.read(),
    "originals": [sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__, sys.stdin is sys.__stdin__],
    "handlers": len(logging.getLogger().handlers),
    "signals": {s.name: str(signal.getsignal(s)) for s in signal.Signals},
    "session": [os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid()],
    "excepthook": sys.excepthook is sys.__excepthook__,
    "umask": os.umask(0o022),
    "limits": [resource.getrlimit(getattr(resource, name)) for name in ("RLIMIT_NOFILE", "RLIMIT_CORE")],
    "cores": sorted(os.sched_getaffinity(0)),
    "nice": os.nice(0),
    "name": Path("/proc/self/comm").read_text(),
    "shown": [Path(word).name for word in Path("/proc/self/cmdline").read_text().rstrip("\0").split("\0")][:3],
    "cwd": Path.cwd().name,
}  # fmt: skip
Path(f"seen-{os.environ['RANK']}.json").write_text(json.dumps(seen, indent=1))
