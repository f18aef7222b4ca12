"""`launcher logs RUN [--rank N] [--follow]` (or rank=N follow=true): print the output of a run's ranks."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator

from launcher import process
from launcher.commands.invocation import Invocation
from launcher.commands.named import named_run, one_folder, options, says_json, submitted
from launcher.errors import InputError
from launcher.run import status as runs
from launcher.run.folder import RunFolder
from launcher.text import whole_number

STDOUT = 1


def run(invocation: Invocation) -> int:
    """Print the log of one rank or of all (of a submitted run: of the job); with follow=true until the run ends."""
    name, words = named_run(invocation.overrides, command="logs")
    wanted = options(words, allowed=["rank", "follow", "output"])
    follow = wanted.get("follow", "false")
    if follow not in ("true", "false"):
        raise InputError(f"follow={follow} must be true or false")
    rank = _rank(wanted.get("rank"))
    if says_json(wanted):
        if follow == "true":
            raise InputError(
                "follow=true has no end that a document could have: leave it out, or leave output=json out"
            )
        print(json.dumps({"run": name, "rank": rank, "lines": list(_lines(name, rank))}))
        return 0
    if submitted(name):
        from launcher.slurm import life  # and with it the planner, which a run on this machine does not need

        for piece in life.read_log(life.SubmittedRun.find(name), rank=rank, following=follow == "true"):
            if process.is_unread(STDOUT):
                return 0  # the terminal, the pipe's reader or the ssh that wanted it is gone
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        return 0
    folder = one_folder(name)
    while follow == "true" and not folder.rank_logs() and not _ended(folder):
        time.sleep(runs.FOLLOW_POLL_S)  # its ranks are about to start
    for line in runs.read_logs(
        runs.rank_logs(folder, rank=rank),
        follow=follow == "true",
        ended=lambda: _ended(folder) or process.is_unread(STDOUT),
    ):
        print(line, flush=True)
    return 0


def _lines(name: str, rank: int | None) -> Iterator[str]:
    """What is there now."""
    if submitted(name):
        from launcher.slurm import life

        pieces = life.read_log(life.SubmittedRun.find(name), rank=rank, following=False)
        yield from b"".join(pieces).decode(errors="replace").splitlines()
    else:
        yield from runs.read_logs(runs.rank_logs(one_folder(name), rank=rank), follow=False)


def _ended(folder: RunFolder) -> bool:
    return runs.status(folder).has_ended


def _rank(word: str | None) -> int | None:
    if word is None or (rank := whole_number(word)) is not None:
        return None if word is None else rank
    raise InputError(f"rank={word} must be the number of a rank, from 0")
