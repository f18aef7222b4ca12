"""`launcher show`: a cluster with the numbers of its links and where they come from; with a plan, its ranks on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from launcher.commands.common import checked_settings
from launcher.commands.given_plan import read_given
from launcher.commands.invocation import Invocation
from launcher.config.files import found_files
from launcher.errors import InputError
from launcher.files import user_path, write_text, written_as
from launcher.planner import Plan
from launcher.report.cluster_links import KeySources, LinkFacts, axis_facts, link_facts
from launcher.report.cluster_svg import cluster_svg
from launcher.report.cluster_text import cluster_lines

SUFFIX = ".svg"


def run(invocation: Invocation) -> int:
    """Print the cluster, or write its picture with out=FILE.svg."""
    own = dict(word.split("=", 1) for word in invocation.overrides if word.startswith(("out=", "plan=")))
    words = [word for word in invocation.overrides if not word.startswith(("out=", "plan="))]
    out = own.get("out")
    if out is not None and not out.endswith(SUFFIX):
        raise InputError(f"out={out} must be a picture as FILE{SUFFIX}; without out= the cluster is drawn as text")
    settings = checked_settings(words)
    plan = read_given(own["plan"], settings, words) if "plan" in own else None
    cluster = plan.job.cluster if plan else settings.job.cluster
    axes = axis_facts(cluster, plan.layout) if plan else []
    facts = link_facts(cluster, sources_of(plan, words))
    layout = plan.layout if plan else None
    if out is not None:
        with written_as(user_path(out), f"out=FILE{SUFFIX}"):
            write_text(user_path(out), cluster_svg(cluster, facts, layout, axes))
        print(json.dumps({"file": out}) if settings.options.output == "json" else out)
    elif settings.options.output == "json":
        print(json.dumps({"cluster": cluster.name, "links": _data(facts), "axes": [asdict(axis) for axis in axes]}))
    else:
        print("\n".join(cluster_lines(cluster, facts, layout, axes)))
    return 0


def sources_of(plan: Plan | None, words: Sequence[str]) -> KeySources:
    """The files that describe the cluster, by name."""
    name = plan.job.cluster.name if plan else _chosen(words)
    return KeySources.of(found_files("cluster", name), words)


def _chosen(words: Sequence[str]) -> str:
    return next((word.split("=", 1)[1] for word in words if word.startswith("cluster=")), "cpu")


def _data(facts: Sequence[LinkFacts]) -> list[dict[str, object]]:
    return [asdict(link) for link in facts]
