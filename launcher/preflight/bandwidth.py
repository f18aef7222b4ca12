"""What the recipe `bandwidth` found, as findings of a check. It measures; it runs in ranks, this does not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.preflight.findings import Finding, Level

RECIPE = "bandwidth"  # also the name of its folder inside the run folder
LIMIT_S = 60.0


def bandwidth_findings(folder: Path, *, code: int | None, log: Path) -> list[Finding]:
    """One finding for each node; one of level UNKNOWN where there is no result. `code`: None where time was over."""
    result = folder / "result.json"
    if not result.is_file():
        how = f"did not end within {LIMIT_S:.0f} s" if code is None else f"failed with exit code {code}"
        return [Finding(Level.UNKNOWN, RECIPE, f"the check {how}, see {log}: the bandwidths are unknown")]
    document = json.loads(result.read_text())
    return [_finding(node, document["slow"].get(node["host"])) for node in document["nodes"]]


def _finding(node: Mapping[str, Any], slow: list[str] | None) -> Finding:
    if slow:
        return Finding(Level.PROBLEM, RECIPE, f"slow: {', '.join(slow)}", node["host"])
    rates = {"inside": node["inside_gbytes_per_s"], "between": node["between_gbytes_per_s"]}
    told = ", ".join(f"{name} {rate:.3g} GB/s" for name, rate in rates.items() if rate is not None)
    return Finding(Level.OK, RECIPE, told or "nothing to measure with one rank", node["host"])
