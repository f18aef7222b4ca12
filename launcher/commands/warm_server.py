"""The process behind `launcher warm`: `python -m launcher.commands.warm_server IDLE_S MODULE …`."""

from __future__ import annotations

import sys

from launcher.commands.common import checked_settings
from launcher.commands.guard import guarded, wants_json
from launcher.commands.invocation import Invocation
from launcher.commands.prepare import order as make_order
from launcher.commands.run import start_ranks
from launcher.faststart.warm import GO_COLD, WarmRun
from launcher.faststart.warm_server import serve
from launcher.run.owner import this_process


def work(run: WarmRun) -> int:
    """Run `launcher run` in the forked child, where the imports are already done."""
    return guarded(lambda: _plan_and_run(run), as_json=wants_json(run.overrides))


def _plan_and_run(run: WarmRun) -> int:
    settings = checked_settings(run.overrides)
    if settings.options.launch.warm == "never":
        return GO_COLD
    order = make_order(Invocation(run.overrides, rest=run.rest), this_process(), settings)
    return start_ranks(order, began=run.began) if order else 0


def main(idle_s: str, *modules: str) -> int:
    checked_settings(())  # the first composition builds tables that the next ones use: 40 ms of CPU
    own = ("launcher.local.start",)  # which `launcher run` imports when it starts ranks
    serve([*own, *(name for name in modules if name.strip())], idle_s=float(idle_s), work=work)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(*sys.argv[1:])))
