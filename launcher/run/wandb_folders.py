"""Where wandb keeps a job's runs on this machine, and which of them is to be uploaded. No wandb is imported.

Each start of a job that is offline makes a folder `offline-run-TIME-ID` with the job's own id. It has every step, those
of earlier starts too: the newest represents the job, and an upload of an older one would replace it. A start that ended
before wandb was worth its import has none: `launcher sync` makes it from metrics.jsonl.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from launcher import env
from launcher.files import read_json, write_json
from launcher.run.folder import RunFolder
from launcher.secret import secrets_in

OFFLINE = "offline-run-"


def wandb_id(run_dir: Path) -> str:
    """The id of a job's wandb run, the same after a resume: that of WANDB_RUN_ID, else made of the folder."""
    return env.get("WANDB_RUN_ID") or hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:12]


def wandb_root(run_dir: Path) -> Path:
    """The folder that wandb writes to: by its own variable WANDB_DIR, else the run folder."""
    given = env.get("WANDB_DIR")
    return Path(given) / RunFolder(run_dir).wandb.name if given else RunFolder(run_dir).wandb


def offline_runs(run_dir: Path) -> list[Path]:
    """The offline runs of a job, the newest first."""
    found = wandb_root(run_dir).glob(f"{OFFLINE}*-{wandb_id(run_dir)}")
    return sorted((path for path in found if path.is_dir()), key=lambda path: path.name, reverse=True)


def note_offline(folder: RunFolder) -> None:
    """Note that the metrics are to become an offline run, and wandb's own variables, but for secrets."""
    here = env.environment()
    hidden = secrets_in(here)
    kept = {name: value for name, value in here.items() if name.startswith("WANDB_") and name not in hidden}
    write_json(folder.wandb_offline, {"variables": kept})


def noted_variables(folder: RunFolder) -> dict[str, str]:
    """wandb's variables as they were for the ranks; none where nothing was noted."""
    if not folder.wandb_offline.is_file():
        return {}
    found = read_json(folder.wandb_offline, remedy="remove it").get("variables")
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def is_unwritten(folder: RunFolder) -> bool:
    """Whether metrics.jsonl has steps that no offline run has."""
    if not (folder.wandb_offline.is_file() and folder.metrics.is_file()):
        return False
    written = [file.stat().st_mtime for run in offline_runs(folder.path) for file in run.glob("run-*.wandb")]
    return max(written, default=0.0) < folder.metrics.stat().st_mtime
