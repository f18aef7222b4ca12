"""What ssh starts on a login node (launch.login): `python -P -m launcher.commands.arrival [RUN]`.

With a run it prints the page of `launcher report`. Without one its standard input has a line of JSON (parcel.py) and
the packed code: it unpacks the code into a folder of the job's own and submits from there. Standard output gets the
document of `launcher submit output=json`.
"""

from __future__ import annotations

import os
import shutil
import sys
import tarfile

from launcher.commands import submit
from launcher.commands.guard import guarded
from launcher.commands.invocation import Invocation
from launcher.commands.named import one_folder
from launcher.commands.parcel import read_parcel
from launcher.errors import InputError, LauncherError
from launcher.files import user_path
from launcher.run.code import unpack
from launcher.run.folder import RunFolder


def receive() -> int:
    """Unpack and submit; returns the exit code of `launcher submit`. Without a job no folder is left."""
    parcel = read_parcel(sys.stdin.buffer.readline())
    folder = RunFolder(user_path(parcel.parent).absolute() / parcel.name)
    try:
        folder.path.mkdir(parents=True)
        unpack(sys.stdin.buffer, folder.code)
    except (OSError, tarfile.TarError) as error:
        shutil.rmtree(folder.code, ignore_errors=True)
        raise InputError(f"the code cannot be unpacked in {folder.path} ({error}): see launch.login_folder") from error
    os.chdir(folder.code / parcel.inside)
    words = (*parcel.words, f"run_dir={folder.path}", "output=json")
    try:
        return submit.run(Invocation(words, rest=parcel.args))
    except LauncherError:
        shutil.rmtree(folder.path, ignore_errors=True)
        raise


def show_page(run: str) -> int:
    """Print the page of a run."""
    from launcher.report.html import run_page  # and with it what a submission does not need

    sys.stdout.write(run_page(one_folder(run)))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: show_page(sys.argv[1])) if sys.argv[1:] else guarded(receive, as_json=True))
