"""Known traps in a Slurm batch script, found by reading it; nothing is run and Slurm is not needed.

lint(text, cluster=cluster) -> findings, in the order of the script
"""

from __future__ import annotations

from launcher.cluster import Cluster
from launcher.lint import directives, joining, lifetime, network, starting, surroundings, variables, waiting
from launcher.lint.finding import LintFinding, Rule, Subject
from launcher.lint.script import BatchScript
from launcher.text import bounded

__all__ = ["RULES", "Finding", "Rule", "lint"]

LARGEST_SCRIPT = 2**16  # characters: twice the largest of 372 public ones, and read by every rule within a second
RULES: tuple[Rule, ...] = (
    *directives.RULES,
    *starting.RULES,
    *joining.RULES,
    *network.RULES,
    *variables.RULES,
    *lifetime.RULES,
    *waiting.RULES,
    *surroundings.RULES,
)


def lint(text: str, *, cluster: Cluster | None = None) -> list[LintFinding]:
    """The traps in a batch script, by line.

    GPUs per node are taken from the script's own request, else from `cluster`; rules that need them keep silent where
    neither says. Raises InputError for what is too long to be a batch script.
    """
    script = BatchScript(bounded(text, "a batch script", most=LARGEST_SCRIPT))
    gpus = script.gpus_per_node or (cluster.node.num_gpus if cluster else None)
    subject = Subject(script, gpus)
    found = {finding: None for rule in RULES for finding in rule.findings(subject)}
    return sorted(found, key=lambda finding: (finding.line, finding.rule))
