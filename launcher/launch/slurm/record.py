"""submit.json in the run folder: what the job's driver must start, and under which job id it was submitted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from launcher.errors import InputError
from launcher.launch.run_folder import write_json

SUBMIT_FILE = "submit.json"
SETUP_FILE = "setup.sh"


@dataclass(frozen=True)
class Submission:
    """What every rank runs, from which folder, and the job id once Slurm has given one."""

    script: str
    args: tuple[str, ...]
    work_dir: str
    job_id: str | None = None


def write_submission(folder: Path, submission: Submission) -> None:
    """Write submit.json, complete or not at all."""
    write_json(folder / SUBMIT_FILE, asdict(submission))


def read_submission(folder: Path) -> Submission:
    """The submission of a run folder; raises InputError where it has none."""
    path = folder / SUBMIT_FILE
    try:
        data = json.loads(path.read_text())
        return Submission(data["script"], tuple(data["args"]), data["work_dir"], data["job_id"])
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} was not submitted to Slurm: it has no {SUBMIT_FILE}; `launcher submit` makes it"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}): submit again") from error


def record_job_id(folder: Path, job_id: str) -> None:
    """Note under which job id a run was submitted."""
    write_submission(folder, replace(read_submission(folder), job_id=job_id))


def setup_text(lines: Sequence[str]) -> str:
    """The set-up file that the batch script sources."""
    return "".join(f"{line}\n" for line in ("# launch.setup, sourced by the batch script before anything else", *lines))
