"""`launcher warm`: keep a fork server with torch imported, so that the next `launcher run` starts at once."""

from __future__ import annotations

import json

from launcher.commands.guard import wants_json
from launcher.commands.invocation import Invocation
from launcher.console import notify
from launcher.errors import InputError

USAGE = "`launcher warm [overrides]` starts the server, `launcher warm stop` stops it, `launcher warm status` checks"
SERVER = "launcher.commands.warm_server"


def run(invocation: Invocation) -> int:
    """Start, stop or check this user's warm server on this machine; return 1 if `status` finds none."""
    from launcher.faststart import warm

    words = [word for word in invocation.overrides if "=" not in word]
    as_json = wants_json(invocation.overrides)
    if len(words) > 1 or (words and words[0] not in ("stop", "status")):
        raise InputError(f"launcher warm does not know {' '.join(words)!r}: {USAGE}")
    if words == ["stop"]:
        pid = warm.stop()
        _answer(f"stopped the warm server (pid {pid})" if pid else "no warm server is running", None, as_json=as_json)
        return 0
    if words == ["status"]:
        pid = warm.running()
        _answer(f"a warm server is running (pid {pid})" if pid else "no warm server is running", pid, as_json=as_json)
        return 0 if pid else 1
    return _start(invocation, as_json=as_json)


def _start(invocation: Invocation, *, as_json: bool) -> int:
    from launcher.commands.common import checked_settings
    from launcher.faststart import warm

    options = checked_settings(invocation.overrides).options
    launch, modules = options.launch, (*options.recipe.preload, *options.launch.preload)
    pid = warm.start(SERVER, modules, idle_s=launch.warm_idle_s)
    idle = f"it stops after {launch.warm_idle_s:g} s without a run"
    _answer(f"warm server started (pid {pid}, {warm.socket_path()}); {idle}", pid, as_json=as_json)
    return 0


def _answer(message: str, pid: int | None, *, as_json: bool) -> None:
    notify(message)
    if as_json:
        print(json.dumps({"running": pid is not None, "pid": pid}))
