"""Claim the folder of a new run: only one owner may use it, and a refused run replaces nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launcher.errors import InputError
from launcher.files import kept
from launcher.run.folder import RunFolder, create_run_folder, new_run_folder
from launcher.run.node_state import forget_node_states
from launcher.run.owner import Owner, check_free, claim, withdraw


def may_claim(path: Path, owner: Owner) -> None:
    """Raise InputError if another process uses the folder or might. Write nothing."""
    if path.is_dir():
        check_free(RunFolder(path), owner, job_ended=job_has_ended)


@contextmanager
def claimed(path: Path | None, owner: Owner, *, name: str) -> Iterator[RunFolder]:
    """Yield the folder at `path`, or a new one named after `name`, claimed for `owner`.

    If the block fails, restore the previous owner and the run's previous files; delete a new folder.
    """
    is_new = path is None or not path.is_dir()
    folder = new_run_folder(name) if path is None else RunFolder(path)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        before = claim(folder, owner, job_ended=job_has_ended)
    except OSError as error:
        raise InputError(
            f"cannot write the run folder {path} ({error.strerror}): choose another with run_dir=FOLDER"
        ) from error
    try:
        with kept(folder.plan, folder.plan_of_start, folder.config, folder.launch, folder.setup):
            create_run_folder(folder.path)
            forget_node_states(folder)
            yield folder
    except Exception:
        withdraw(folder, owner, before)
        if is_new:
            shutil.rmtree(folder.path, ignore_errors=True)
        raise


def job_has_ended(job_id: str) -> bool | None:
    """Return whether a batch job has ended; None if Slurm cannot be reached."""
    from launcher.slurm.life import has_ended

    return has_ended(job_id)
