"""`launcher plan`: rank layouts and explain them; compare sizes and clusters."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from launcher.commands.claim import may_claim
from launcher.commands.common import SEARCHING, checked_settings
from launcher.commands.given_plan import check_checkpoints, named_folder, read_given
from launcher.commands.invocation import Invocation
from launcher.commands.plan_keys import check_read, check_swept
from launcher.config.compose import load, sweep
from launcher.config.settings import Settings, request_on
from launcher.console import counted, show, terminal_width, waiting
from launcher.cost.model import CostModel
from launcher.errors import InputError, NoLayoutFits
from launcher.files import user_path, written_as
from launcher.planner import Plan, compare, document, mix, write_plan
from launcher.planner.batches import better_batches, chosen_batch, unchosen_batch, with_usual_batch
from launcher.planner.build import limits, notes
from launcher.planner.compare import Case
from launcher.planner.deadline import fewest_gpus, largest_model, within_deadline
from launcher.planner.distinct import by
from launcher.planner.explain import reasons, slower
from launcher.planner.search import less_memory, search
from launcher.planner.why_not import why_not
from launcher.report import terminal
from launcher.report.mix_text import mix_lines
from launcher.run.folder import RunFolder
from launcher.run.owner import this_process

NEAR_DUPLICATES = 4  # plans searched for each that is shown


def run(invocation: Invocation) -> int:
    """Print the ranked plans of one job, the answer to `why_not`, or a comparison of several jobs."""
    check_read(invocation.overrides, swept=invocation.multirun)
    if any(word.startswith("from=") for word in invocation.overrides):
        from launcher.commands import from_file  # and with it every reader of other tools' files

        return from_file.run(invocation.overrides)
    if invocation.multirun:
        what, cases = _swept_cases(sweep(invocation.overrides))
        if cases[0][0].options.tokens_per_parameter is not None:
            return _largest([(case[0].label, settings) for settings, case in cases])
        if cases[0][0].options.days is not None:
            return _in_time([(case[0].label, settings) for settings, case in cases], what=what)
        return _compare([case for _, several in cases for case in several], [case[0] for case in cases], what=what)
    settings = checked_settings(invocation.overrides)
    if settings.options.mix is not None:
        return _mixed(invocation.overrides, settings)
    if settings.options.plan is not None:
        return _explain(read_given(settings.options.plan, settings, invocation.overrides), settings)
    if settings.options.tokens_per_parameter is not None:
        return _largest([(settings.job.model.name, settings)])
    if settings.options.days is not None:
        return _in_time([(settings.job.cluster.name, settings)], what="cluster")
    if settings.options.sizes is not None:
        return _compare(_sized_cases(settings, settings.options.sizes), [settings], what="cluster")
    return _rank(settings)


def _rank(settings: Settings) -> int:
    question = settings.options.why_not
    started = time.perf_counter()
    model = CostModel(settings.job)
    refuse = limits(settings.job, settings.run_options)
    top = settings.options.top
    listed = top if settings.options.output == "json" else top * NEAR_DUPLICATES
    with waiting(SEARCHING):
        result = search(settings.job, settings.request, top=listed, model=model, refuse=refuse)
        order = settings.options.sort
        several = less_memory(result, most=top, model=model, refuse=refuse) if order == "memory" else result.candidates
    why = reasons(result, model)
    batch = (
        unchosen_batch(settings.job)
        if _no_batch(settings)
        else better_batches(settings.job, settings.request, result.best, refuse)
    )
    why[0] = (*why[0], *batch, *notes(settings.job, settings.run_options))
    seconds = time.perf_counter() - started
    answer = why_not(result, question, model, refuse=refuse) if question is not None else None
    best = result.best
    plan = Plan(settings.job, best.layout, document.estimate_data(best.estimate), why[0], settings.run_options)
    _keep(plan, settings)
    due = _bill(plan)
    if settings.options.output == "json":
        extra: dict[str, Any] = {"why_not": answer} if answer else {}
        extra |= {"training": due._asdict()} if due else {}
        ordered = replace(result, candidates=tuple(by(several, order)))
        said = {best.layout: why[0]}
        whys = [said.get(each.layout) or (slower(best.estimate, each.estimate),) for each in ordered.candidates]
        print(json.dumps(document.plans_document(ordered, whys, seconds=seconds) | extra))
        return 0
    terminal.show_plans(sys.stdout, result, why, seconds=seconds, top=top, listed=by(several, order))
    if due:
        show("", terminal.bill_text(due, "the first plan"))
    if answer:
        show("", f"Why not {question}: {answer}")
    return 0


def _no_batch(settings: Settings) -> bool:
    """Whether the user set no batch, so that it is the default of every model."""
    return "global_batch" not in (settings.given.get("train") or {})


def _bill(plan: Plan) -> compare.Bill | None:
    """Return what the plan's number of training tokens takes, if it has one."""
    tokens = plan.options.tokens
    return compare.bill(plan.estimate, plan.layout.world_size, tokens) if tokens and plan.estimate else None


def _mixed(words: Sequence[str], settings: Settings) -> int:
    """Print how GPUs are cut for a mix of small jobs."""
    jobs = []
    for name, count in counted(list((settings.options.mix or {}).items()), "planning"):
        own = load([*(word for word in words if not word.startswith(("mix=", "model="))), f"model={name}"])
        alone = request_on(compare.resized(own.job.cluster, 1), own.options.layout)
        jobs += [mix.small_job(name, own.job, alone)] * count
    gpus, available = mix.packed(jobs), settings.job.cluster.num_gpus
    if settings.options.output == "json":
        print(json.dumps(mix.mix_data(gpus, available)))
    else:
        show(*mix_lines(gpus, settings.job.cluster, width=terminal_width(sys.stdout)))
    return 0


def _explain(plan: Plan, settings: Settings) -> int:
    """Explain a plan that was made earlier."""
    _keep(plan, settings)
    due = _bill(plan)
    if settings.options.output == "json":
        print(json.dumps(document.plan_document(plan) | ({"training": due._asdict()} if due else {})))
    else:
        terminal.show_plan(sys.stdout, plan)
        if due:
            show("", terminal.bill_text(due, "this plan"))
    return 0


def _keep(plan: Plan, settings: Settings) -> None:
    """Write the best plan if the user asked for it: to a file, or into the folder of a later run."""
    path = named_folder(settings)
    if path is not None:
        may_claim(path, this_process())
        check_checkpoints(plan, RunFolder(path))
        _write(plan, RunFolder(path).plan, "run_dir=FOLDER")
        RunFolder(path).plan_of_start.unlink(missing_ok=True)
    if settings.options.save is not None:
        _write(plan, user_path(settings.options.save), "save=FILE")


def _write(plan: Plan, file: Path, key: str) -> None:
    with written_as(file, key):
        write_plan(plan, file)


def _compare(cases: Sequence[Case], several: Sequence[Settings], *, what: str) -> int:
    """Print the best plan of each case; return 3 if no case has one. `what`: the keys by which they differ."""
    comparison = compare.compare(counted(cases, "planning"), tokens=several[0].options.tokens, what=what)
    asked = [line for each in several if _no_batch(each) for line in unchosen_batch(each.job)]
    return _show(comparison, several[0], asked)


def _in_time(cases: Sequence[tuple[str, Settings]], *, what: str) -> int:
    """Print the fewest GPUs of each cluster that train `tokens` in `days`; return 3 if no case has a plan."""
    settings = cases[0][1]
    tokens, days = settings.options.tokens, settings.options.days
    if tokens is None or days is None:
        raise InputError(f"days={days:g} is a deadline for a number of tokens: set tokens, as tokens=300e9")
    if settings.options.sizes is not None:
        raise InputError(f"days={days:g} finds the number of GPUs itself: leave out sizes")
    cases, chosen = _with_batches(cases)
    rows = [
        fewest_gpus(
            label,
            each.job,
            partial(request_on, asked=each.options.layout),
            tokens=tokens,
            days=days,
            refuse=limits(each.job, each.run_options),
        )
        for label, each in counted(cases, "planning")
    ]
    return _show(within_deadline(rows, tokens=tokens, days=days, what=what), settings, chosen)


def _largest(cases: Sequence[tuple[str, Settings]]) -> int:
    """Print the largest of these models that its cluster trains to so many tokens a parameter in time."""
    options = cases[0][1].options
    multiple, days = options.tokens_per_parameter, options.days
    if multiple is None or days is None or options.tokens is not None or options.sizes is not None:
        raise InputError(
            f"tokens_per_parameter={multiple:g} finds the largest model that is trained in time: set days, as days=14, "
            "leave out tokens and sizes"
        )
    cases, chosen = _with_batches(cases)
    found = [
        _case(f"{label}, batch {each.job.training.global_batch}", each) for label, each in counted(cases, "planning")
    ]
    return _show(largest_model(found, tokens_per_parameter=multiple, days=days), cases[0][1], chosen)


def _with_batches(cases: Sequence[tuple[str, Settings]]) -> tuple[list[tuple[str, Settings]], list[str]]:
    """Give each case on GPUs whose batch was not set that of published models of about the same size, and say so."""
    found, lines = [], []
    for label, each in cases:
        if _no_batch(each) and each.job.cluster.node.gpu.kind == "cuda":
            lines.append(chosen_batch(each.job))
            each = replace(each, job=with_usual_batch(each.job))
        found.append((label, each))
    return found, lines


def _show(comparison: compare.Comparison, settings: Settings, notes: Sequence[str] = ()) -> int:
    """Print a comparison and the notes on it, each once; return 3 if no row has a plan."""
    comparison = replace(comparison, verdicts=(*comparison.verdicts, *dict.fromkeys(notes)))
    if settings.options.sort is not None:
        comparison = compare.ordered(comparison, settings.options.sort)
    if settings.options.output == "json":
        print(json.dumps(compare.comparison_data(comparison)))
    else:
        terminal.show_comparison(sys.stdout, comparison)
    return 0 if any(row.best for row in comparison.rows) else NoLayoutFits.exit_code


def _sized_cases(settings: Settings, sizes: Sequence[int], label: str | None = None) -> list[Case]:
    """Return one case per size; `label` is that of the cluster if several things are compared."""
    clusters = [compare.resized(settings.job.cluster, size) for size in sizes]
    return [
        replace(
            _case(f"{label or cluster.name} × {size}", settings),
            job=replace(settings.job, cluster=cluster),
            request=request_on(cluster, settings.options.layout),
        )
        for size, cluster in zip(sizes, clusters, strict=True)
    ]


def _case(label: str, settings: Settings) -> Case:
    return Case(label, settings.job, settings.request, limits(settings.job, settings.run_options))


def _swept_cases(combinations: Sequence[Sequence[str]]) -> tuple[str, list[tuple[Settings, list[Case]]]]:
    """Return the keys that differ, and settings and cases of every combination: one, or one per size, labelled by the
    values that differ.
    """
    values = [{word.partition("=")[0]: word.partition("=")[2] for word in combination} for combination in combinations]
    differing = [key for key in values[0] if len({value[key] for value in values}) > 1]
    check_swept([key.lstrip("+~") for key in differing])
    every = [load(combination) for combination in combinations]
    for note in dict.fromkeys(note for settings in every for note in settings.notes):
        print(f"launcher: {note}", file=sys.stderr)
    found = []
    for settings, value in zip(every, values, strict=True):
        label = " ".join(value[key] for key in differing) or settings.job.cluster.name
        sizes = settings.options.sizes
        cases = _sized_cases(settings, sizes, label) if sizes else [_case(label, settings)]
        found.append((settings, cases))
    return " ".join(key.lstrip("+~") for key in differing) or "cluster", found
