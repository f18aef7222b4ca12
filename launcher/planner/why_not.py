"""Explain why one layout is not the first choice: illegal, too large, or slower, and where."""

from __future__ import annotations

from dataclasses import fields, replace
from difflib import get_close_matches
from typing import Any

from launcher.cost.model import CostModel
from launcher.errors import InputError, NoLayoutFits
from launcher.layout import LayoutRequest
from launcher.planner.explain import slower
from launcher.planner.result import SearchResult
from launcher.planner.search import search
from launcher.planner.space import Refuse

FLAGS = {"true": True, "false": False}
TEXTS = ("recompute", "axis_order", "schedule", "shard_group")


def why_not(result: SearchResult, question: str, model: CostModel, *, refuse: Refuse | None = None) -> str:
    """Answer for the best layout with the keys of `question` (`tp=4,pp=16`) and the user's other pinned keys.

    Raises InputError if the question is not understood.
    """
    pins = parse(question)
    request = replace(result.request, **pins)
    world_keys = ("tp", "pp", "dp", "cp")
    if "dp" not in pins and any(key in pins for key in world_keys):
        request = replace(request, dp=None)
    try:
        asked = search(result.job, request, top=1, model=model, refuse=refuse).best
    except InputError as error:
        return "it is illegal: " + "; ".join(error.problems)
    except NoLayoutFits as error:
        return f"it does not fit: {error}"
    best = result.best
    if asked.layout == best.layout:
        return f"it is the first choice: {best.layout.brief()}"
    return f"its best is {asked.layout.brief()}, {slower(best.estimate, asked.estimate)}"


def parse(question: str) -> dict[str, Any]:
    """Parse `tp=4,pp=16` into layout keys and values; raises InputError with every part that is not understood."""
    known = [f.name for f in fields(LayoutRequest) if f.name != "layer_split"]
    pins: dict[str, Any] = {}
    problems = []
    for part in question.replace(" ", "").split(","):
        key, equals, text = part.partition("=")
        key = key.removeprefix("layout.")
        if not equals or key not in known:
            near = get_close_matches(key, known, n=1)
            meant = f"did you mean {near[0]}?" if near else f"keys are {', '.join(known)}"
            problems.append(f"why_not={part!r} is not a layout key and value, as why_not='tp=4,pp=16': {meant}")
            continue
        value = _value(key, text)
        if value is None:
            problems.append(f"why_not={part!r}: {text!r} is not a value of {key}")
        elif pins.setdefault(key, value) != value:
            problems.append(f"why_not gives {key} two values, {pins[key]} and {value}: ask for one of them")
    if problems:
        raise InputError(problems)
    return pins


def _value(key: str, text: str) -> object | None:
    if key in ("sequence_parallel", "offload_optimizer", "tp_across_domains"):
        return FLAGS.get(text.lower())
    if key in TEXTS:
        return text or None
    return int(text) if text.isdecimal() else None
