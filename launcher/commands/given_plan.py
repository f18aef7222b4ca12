"""Use an existing plan: which overrides may be given with it, and what they change.

A given plan is never changed. Overrides of what it was made for (cluster, model, stack, layout, and the keys of train.*
that affect an estimate) must agree with it. The other keys (train.steps, recipe.*, tracking.*, the user's program) are
options of the run: they change the copy of the plan in the run folder, never the given file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from launcher.agent.launch import planned
from launcher.config.compose import load
from launcher.config.settings import OTHER_NAMES, Configuration, Settings
from launcher.errors import InputError
from launcher.files import user_path
from launcher.layout.resolve import resolved_shard_group
from launcher.planner.given import check_given
from launcher.planner.options import TrainOptions
from launcher.planner.record import RECIPE, Plan, RunOptions, read_plan
from launcher.run.checkpoints import check_identity, folder_name, newest_good, read_manifest
from launcher.run.folder import RunFolder, one_run
from launcher.schema import AUTO, to_plain, walk
from launcher.units import GIB, MIB

SECTIONS = ("cluster", "model", "stack", "layout", "train")  # what a plan is made for
COUNTS = {"launch.nproc_per_node": "cluster.node.num_gpus", "launch.nnodes": "cluster.num_nodes"}  # other names
MOST_NAMED = 3
BYTES = {"GiB": GIB, "MiB": MIB}  # of keys that are read into a field of another name
APART = "num_nodes"  # cluster files set it too, but choosing a cluster file does not mean to change it
T = TypeVar("T")


def read_given(name: str, settings: Settings, overrides: Sequence[str]) -> Plan:
    """Read the plan of a file or folder, with the options that were given with it.

    Raises InputError with every override that contradicts it.
    """
    path = user_path(name)
    plan = planned(one_run(path)) if path.is_dir() else read_plan(path)
    check_given(plan, name)
    words = [word for word in overrides if _is_of_the_plan(word)]
    problems = [problem for word in words for problem in _contradictions(word, plan, settings, overrides)]
    if problems:
        raise InputError([f"{problem} (plan={name})" for problem in problems])
    return replace(plan, options=_options(plan.options, settings, overrides))


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def _section(word: str) -> str:
    return _key(word).partition(".")[0].partition("@")[0].partition("/")[0]


def _is_of_the_plan(word: str) -> bool:
    """Return whether an override concerns what a plan is made for; `auto` does not."""
    section, _, key = _key(word).partition(".")
    option = section == "train" and key in {field.name for field in fields(TrainOptions)}
    return (_section(word) in SECTIONS or _key(word) in COUNTS) and not option and not word.endswith("=auto")


def _contradictions(word: str, plan: Plan, settings: Settings, overrides: Sequence[str]) -> list[str]:
    """Return how one override contradicts the plan."""
    section, _, key = {**COUNTS, **OTHER_NAMES}.get(_key(word), _key(word)).partition(".")
    wanted = _values(section, settings)
    here = _values_of_plan(section, plan)
    touched = _touched(section, key, wanted, word, overrides)
    if section == "layout":  # keys that are not pinned keep the plan's values
        layout, asked = plan.layout, wanted["shard_group"]
        group = resolved_shard_group(plan.job, asked, tp=layout.tp, ranks=layout.dp * layout.cp)
        wanted = {**wanted, "shard_group": asked and group}
        touched = {name for name in touched if wanted[name] is not None}
    different = sorted(name for name in touched if name in here and wanted.get(name) != here[name])
    if not different:
        return []
    if key:
        has = _shown(f"{section}.{key}", here[key if key in different else different[0]])
        return [f"{word} contradicts the plan, which has {has}: leave it out, or plan again"]
    named = ", ".join(f"{name} ({here[name]} in the plan)" for name in different[:MOST_NAMED])
    return [f"{word} differs from the plan in {named}: leave it out, or plan again"]


def _touched(section: str, key: str, wanted: Mapping[str, Any], word: str, overrides: Sequence[str]) -> set[str]:
    """Return the values that an override sets: those that would differ without it, and the one it names."""
    if not key:
        return {name for name in wanted if name != APART}
    if key == APART:
        return {key}
    try:
        without = _values(section, load([other for other in overrides if other != word]))
    except InputError:
        without = dict(wanted)
    changed = {name for name, value in wanted.items() if without.get(name) != value}
    return changed | ({key} & set(wanted))


def _values(section: str, settings: Settings) -> dict[str, Any]:
    job = settings.job
    found = {
        "cluster": job.cluster,
        "model": job.model,
        "stack": job.stack,
        "layout": settings.options.layout,
        "train": job.training,
    }
    return _flat(to_plain(found[section]))


def _values_of_plan(section: str, plan: Plan) -> dict[str, Any]:
    job = plan.job
    if section == "layout":  # and the limits that it was searched within
        return _flat(to_plain(plan.options.asked)) | _flat(to_plain(plan.layout))
    found = {"cluster": job.cluster, "model": job.model, "stack": job.stack, "train": job.training}
    return _flat(to_plain(found[section]))


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in data.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _shown(name: str, value: Any) -> str:
    """Return a value in the unit of its key."""
    entry = dict(walk(Configuration)).get(name)
    if value is None:
        return AUTO if entry is not None and entry.takes_auto else "null"
    if isinstance(value, bool):
        return str(value).lower()
    if entry is None or not isinstance(value, int | float):
        return str(value)
    return f"{value / (entry.key.scale if entry.kept else BYTES.get(entry.key.unit or '', 1)):g}"


def _options(options: RunOptions, settings: Settings, overrides: Sequence[str]) -> RunOptions:
    """Return the plan's options updated with those that were given."""
    given, keys = settings.run_options, given_keys(overrides)
    return RunOptions(
        asked=options.asked,
        train=merged(options.train, given.train, "train", keys),
        tracking=merged(options.tracking, given.tracking, "tracking", keys),
        recipe=merged(options.recipe, given.recipe, "recipe", keys),
        program=given.program or (None if "recipe" in keys else options.program),
        tokens=given.tokens if "tokens" in keys else options.tokens,
        output=given.output,
    )


def given_keys(overrides: Sequence[str]) -> set[str]:
    """Return the keys that overrides set and the groups that they choose."""
    return {_key(word) for word in overrides}


def merged(before: T, given: T, section: str, keys: set[str]) -> T:
    """Return `before` with the given keys of a section; with all its keys if a file of the section was chosen.

    A recipe of the plan stays, whichever is the default.
    """
    if section in keys or f"{section}.name" in keys:
        return given
    if type(before) is not type(given):
        return before
    named = {entry.name: entry.field for _, entry in walk(type(given))}
    chosen = {field: getattr(given, field) for name, field in named.items() if f"{section}.{name}" in keys}
    return replace(before, **chosen)  # type: ignore[type-var]


def named_folder(settings: Settings) -> Path | None:
    """Return the run folder that the user named."""
    given = settings.options.run_dir
    return Path(given) if given else None


def check_checkpoints(plan: Plan, folder: RunFolder) -> None:
    """Raise InputError if the newest checkpoint belongs to another job; otherwise every rank would refuse it."""
    step, train = newest_good(folder.checkpoints).step, plan.options.train
    if step is None or not train.resume or (plan.kind == RECIPE and not train.checkpoint_every):
        return
    checkpoint = folder.checkpoints / folder_name(step)
    saved = read_manifest(checkpoint).get("job")
    check_identity(saved if isinstance(saved, dict) else {}, plan.identity(), folder=checkpoint)
