"""`launcher lint`: report known traps in a batch script, each with its reason; return 1 if one is an error."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from launcher.commands.common import checked_settings
from launcher.commands.invocation import Invocation
from launcher.commands.named import OVERRIDE
from launcher.console import show
from launcher.errors import InputError
from launcher.lint import LARGEST_SCRIPT, lint


def run(invocation: Invocation) -> int:
    files = [word for word in invocation.overrides if not OVERRIDE.match(word)]
    overrides = [word for word in invocation.overrides if OVERRIDE.match(word)]
    if not files:
        raise InputError("`launcher lint` needs a batch script: launcher lint job.sbatch [cluster=NAME]")
    named_cluster = any(word.startswith("cluster") for word in overrides)
    settings = checked_settings(overrides)
    cluster = settings.job.cluster if named_cluster else None
    found = {file: lint(_read(Path(file)), cluster=cluster) for file in files}
    if settings.options.output == "json":
        print(json.dumps({file: [asdict(finding) for finding in findings] for file, findings in found.items()}))
    else:
        for file, findings in found.items():
            show(*[f"{file}: {finding}" for finding in findings] or [f"{file}: no known trap"])
    return int(any(finding.severity == "error" for findings in found.values() for finding in findings))


def _read(path: Path) -> str:
    """Read a script without changing its line breaks."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return file.read(LARGEST_SCRIPT + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise InputError(f"cannot read {path} ({reason}): give a batch script") from error
