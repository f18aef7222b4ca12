"""Converts the result of the recipe `bandwidth`, which runs in ranks, to findings of a check."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launcher.preflight.findings import Finding, Level
from launcher.run.result import NodeRates, read_bandwidth_result

RECIPE = "bandwidth"  # also the name of its folder inside the run folder
LIMIT_S = 60.0


def bandwidth_findings(result: Path, *, code: int | None, log: Path) -> list[Finding]:
    """Return one finding per node; one of level UNKNOWN if there is no result. `code`: None after a timeout."""
    if not result.is_file():
        how = f"did not end within {LIMIT_S:.0f} s" if code is None else f"failed with exit code {code}"
        return [Finding(Level.UNKNOWN, RECIPE, f"the check {how}, see {log}: the bandwidths are unknown")]
    found = read_bandwidth_result(result)
    return [_finding(node, found.slow.get(node.host)) for node in found.nodes]


def _finding(node: NodeRates, slow: Sequence[str] | None) -> Finding:
    if slow:
        return Finding(Level.PROBLEM, RECIPE, f"slow: {', '.join(slow)}", node.host)
    rates = {"inside": node.inside_gbytes_per_s, "between": node.between_gbytes_per_s}
    said = ", ".join(f"{name} {rate:.3g} GB/s" for name, rate in rates.items() if rate is not None)
    return Finding(Level.OK, RECIPE, said or "nothing to measure with one rank", node.host)
