"""Where wandb keeps a job's runs on this machine, and which of them is to be uploaded. No wandb is imported.

Each start of a job that is offline makes a folder `offline-run-TIME-ID` with the job's own id. It has every step, those
of earlier starts too: the newest represents the job, and an upload of an older one would replace it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from launcher import env
from launcher.run.folder import RunFolder

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
