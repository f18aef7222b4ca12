"""`launcher plan`: rank layouts and explain them; compare sizes and clusters."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.cluster import Cluster
from launcher.commands.invocation import Invocation
from launcher.config.compose import Settings, load, sweep
from launcher.config.fields import AUTO
from launcher.config.recompose import load_again
from launcher.cost.model import CostModel
from launcher.errors import InputError
from launcher.layout import LayoutRequest
from launcher.layout.job import Job
from launcher.planner import Plan, compare, document, write_plan
from launcher.planner.explain import reasons
from launcher.planner.search import search
from launcher.planner.why_not import why_not
from launcher.report import terminal
from launcher.run.folder import RunFolder

Case = tuple[str, Job, LayoutRequest]


def run(invocation: Invocation) -> int:
    """Print the ranked plans of one job, the answer to `why_not`, or a comparison of several jobs."""
    overrides = [_as_one_value(word) for word in invocation.overrides]
    if invocation.multirun:
        cases = _swept_cases(sweep(overrides))
        return _compare([case for _, several in cases for case in several], cases[0][0])
    settings = load(overrides)
    if settings.config["sizes"] is not None:
        return _compare(_sized_cases(settings), settings.config)
    return _rank(settings)


def _as_one_value(override: str) -> str:
    """`sizes=8,16` and `why_not=tp=4,pp=16` as people type them: a bare comma would be a sweep to Hydra."""
    key, _, value = override.partition("=")
    if key == "sizes" and value[:1] not in ("[", "n"):
        return f"sizes=[{value}]"
    if key == "why_not" and "=" in value and value[:1] not in ("'", '"'):
        return f"why_not='{value}'"
    return override


def _rank(settings: Settings) -> int:
    tokens, question = _tokens(settings.config), settings.config["why_not"]
    started = time.perf_counter()
    model = CostModel(settings.job)
    result = search(settings.job, settings.request, top=_top(settings.config), model=model)
    why = reasons(result, model)
    seconds = time.perf_counter() - started
    answer = why_not(result, question, model) if question is not None else None
    if settings.config["run_dir"]:
        best = result.best
        _keep(Plan(settings.job, best.layout, document.estimate_data(best.estimate), why[0], settings.config))
    if _wants_json(settings.config):
        extra: dict[str, Any] = {"why_not": answer} if answer else {}
        extra |= {"training": compare.bill(result.best, tokens)._asdict()} if tokens else {}
        print(json.dumps(document.plans_document(result, why, seconds=seconds) | extra))
        return 0
    terminal.show_plans(sys.stdout, result, why, seconds=seconds)
    if tokens:
        print(f"\n{terminal.bill_text(compare.bill(result.best, tokens))}")
    if answer:
        print(f"\nWhy not {question}: {answer}")
    return 0


def _keep(plan: Plan) -> None:
    folder = Path(plan.config["run_dir"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_plan(plan, RunFolder(folder).plan)
    except OSError as error:
        raise InputError(f"cannot write {folder} ({error.strerror}): give another with run_dir=FOLDER") from error


def _compare(cases: Sequence[Case], config: Mapping[str, Any]) -> int:
    comparison = compare.compare(cases, tokens=_tokens(config))
    if _wants_json(config):
        print(json.dumps(compare.comparison_data(comparison)))
    else:
        terminal.show_comparison(sys.stdout, comparison)
    return 0


def _sized_cases(settings: Settings, label: str | None = None) -> list[Case]:
    """One case a size; `label` stands for the cluster where several things are compared."""
    sizes = settings.config["sizes"]
    numbers = isinstance(sizes, list) and sizes and all(type(size) is int for size in sizes)
    if not numbers:
        raise InputError(f"sizes={sizes} must be a list of numbers of GPUs: sizes=[8,16,32]")
    job = settings.job
    clusters = [compare.resized(job.cluster, size) for size in sizes]
    return [
        (f"{label or cluster.name} × {size}", replace(job, cluster=cluster), _request_at(settings, cluster))
        for size, cluster in zip(sizes, clusters, strict=True)
    ]


def _request_at(settings: Settings, cluster: Cluster) -> LayoutRequest:
    """What the user pinned; degrees that only the cluster's default layout pins are free at any other size."""
    defaults: dict[str, Any] = dict.fromkeys(settings.job.cluster.default_layout)
    asked = any(settings.config["layout"][key] != AUTO for key in defaults)
    return settings.request if asked or cluster == settings.job.cluster else replace(settings.request, **defaults)


def _swept_cases(combinations: Sequence[Sequence[str]]) -> list[tuple[Mapping[str, Any], list[Case]]]:
    """For every combination its configuration and cases: one, or one a size, labelled by the values that differ."""
    values = [{word.partition("=")[0]: word.partition("=")[2] for word in combination} for combination in combinations]
    differing = [key for key in values[0] if len({value[key] for value in values}) > 1]
    found = []
    for combination, value in zip(combinations, values, strict=True):
        settings = load_again(combination)
        label = " ".join(value[key] for key in differing) or settings.job.cluster.name
        sized = settings.config["sizes"] is not None
        cases = _sized_cases(settings, label) if sized else [(label, settings.job, settings.request)]
        found.append((settings.config, cases))
    return found


def _tokens(config: Mapping[str, Any]) -> float | None:
    tokens = config["tokens"]
    if tokens is None:
        return None
    if isinstance(tokens, bool) or not isinstance(tokens, int | float) or tokens <= 0:
        raise InputError(f"tokens={tokens!r} must be a number of training tokens above 0: tokens=300e9")
    return float(tokens)


def _top(config: Mapping[str, Any]) -> int:
    top = config["top"]
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise InputError(f"top={top!r} must be a whole number of at least 1")
    return top


def _wants_json(config: Mapping[str, Any]) -> bool:
    if config["output"] not in ("text", "json"):
        raise InputError(f"output={config['output']!r} is not one of text, json")
    return bool(config["output"] == "json")
