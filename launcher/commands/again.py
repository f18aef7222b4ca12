"""`launcher run again=RUN`: repeat a run with its words and its plan, in a folder of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from launcher.commands.invocation import Invocation
from launcher.commands.named import resolved
from launcher.console import notify
from launcher.errors import InputError
from launcher.run.folder import one_run
from launcher.run.provenance import differences, read_provenance

AGAIN = "again="
# What the plan has, what is of the earlier run alone, and what only shows.
NOT_REPEATED = ("run_dir", "plan", "script", "module", "program", "dry_run", "output", "again")


def repeated(invocation: Invocation) -> Invocation:
    """Return the command with the words of the run that `again=` names; as it is without one.

    Words of this command replace those of the run with the same key. Raises InputError where there is no such run.
    """
    given = [word for word in invocation.overrides if word.startswith(AGAIN)]
    if not given:
        return invocation
    name = resolved(given[-1].removeprefix(AGAIN))
    folder = one_run(Path(name))
    if not folder.provenance.is_file():
        raise InputError(f"again={name} is no folder of a run that can be repeated: it has no {folder.provenance.name}")
    noted = read_provenance(folder)
    for line in differences(noted, folder):
        notify(line)
    own = [word for word in invocation.overrides if not word.startswith(AGAIN)]
    keys = {_key(word) for word in own} | set(NOT_REPEATED)
    kept = [word for word in noted.words if _key(word) not in keys]
    return replace(invocation, overrides=(*kept, f"plan={name}", *own))


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]
