"""The JSON schema of every document that `output=json` prints; `launcher COMMAND --schema` shows it.

Keys that are there are named here and stay; a version may add others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from launcher.errors import InputError

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TEXT, NUMBER, WHOLE, FLAG = {"type": "string"}, {"type": "number"}, {"type": "integer"}, {"type": "boolean"}
TEXT_OR_NULL, NUMBER_OR_NULL = {"type": ["string", "null"]}, {"type": ["number", "null"]}
WHOLE_OR_NULL = {"type": ["integer", "null"]}
ANY_OBJECT = {"type": "object"}


def _object(about: str = "", *, optional: Sequence[str] = (), **properties: Any) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    described = {"description": about} if about else {}
    return {"type": "object", **described, "properties": properties, "required": required}


def _list(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


ERROR = _object(
    "what is printed in place of any document, with that exit code",
    error=_object(
        kind={"enum": ["input", "no_layout_fits", "job_failed", "launcher", "system", "interrupted"]},
        problems=_list(TEXT),
        exit_code=WHOLE,
    ),
)
_PLAN = _object(
    "a layout with its estimate: seconds, bytes and tokens/s of one GPU; null is unknown",
    optional=("why",),
    layout=ANY_OBJECT, step_time_s=NUMBER, step_time_interval_s=_list(NUMBER), fits=FLAG, fit_probability=NUMBER,
    memory_bytes_per_gpu=NUMBER, tokens_per_s_per_gpu=NUMBER, mfu=NUMBER_OR_NULL,
    cost_per_million_tokens=NUMBER_OR_NULL, memory=ANY_OBJECT, time=ANY_OBJECT, why=_list(TEXT),
)  # fmt: skip
_PLANS = _object(
    "the best layouts, best first, and what became of the others",
    optional=("why_not", "training"),
    plans=_list(_PLAN), rejected={"type": "object", "additionalProperties": WHOLE}, searched=WHOLE, seconds=NUMBER,
    cluster=ANY_OBJECT, model=ANY_OBJECT, stack=ANY_OBJECT,
    batch=_object(global_batch=WHOLE, seq_len=WHOLE, tokens=WHOLE, dtype=TEXT), version=TEXT,
    placement=_object(
        "of the first plan", num_nodes=WHOLE, ranks_per_node=WHOLE, axis_order=TEXT,
        groups={"type": "object", "additionalProperties": TEXT},
    ),
    why_not=TEXT, training=ANY_OBJECT,
)  # fmt: skip
_COMPARISON = _object(
    "the best plan of each combination of -m, or of each of sizes=; null where none fits",
    tokens=NUMBER_OR_NULL, tokens_per_parameter=NUMBER_OR_NULL, what=TEXT, verdicts=_list(TEXT),
    rows=_list(_object(label=TEXT, cluster=TEXT, gpu=TEXT, num_gpus=WHOLE, jobs=WHOLE, tokens_per_s=NUMBER_OR_NULL,
                       scaling=NUMBER_OR_NULL, days=NUMBER_OR_NULL, gpu_hours=NUMBER_OR_NULL, cost=NUMBER_OR_NULL,
                       note=TEXT, plan={"anyOf": [_PLAN, {"type": "null"}]})),
)  # fmt: skip
_MIX = _object(
    "with mix=: how GPUs are cut for jobs, and how many GPUs the cluster has",
    gpus=_list(_object(gpu=WHOLE, command=TEXT_OR_NULL, jobs=_list(_object(
        model=TEXT, profile=TEXT_OR_NULL, start=WHOLE_OR_NULL, layout=TEXT, tokens_per_s=NUMBER)))),
    available=WHOLE,
)  # fmt: skip
_FROM_FILE = _object(
    "with from=FILE, which is named in `from`: what the file runs, and the best plan for its tool",
    tool=TEXT, read=ANY_OBJECT, yours=_PLAN, best=_PLAN, difference=_list(TEXT), verdict=TEXT, flags=_list(TEXT),
)  # fmt: skip
_RUN = _object(
    "the last line of a recipe: its result in short, and the file that has the rest; a program of yours prints its own",
    optional=("engine", "layout", "losses", "predicted_step_time_s", "measured_step_time_s"),
    recipe=TEXT, engine=TEXT, layout=ANY_OBJECT, losses=_object(first=NUMBER_OR_NULL, last=NUMBER_OR_NULL),
    predicted_step_time_s=NUMBER_OR_NULL, measured_step_time_s=NUMBER_OR_NULL, result=TEXT,
)  # fmt: skip
# Of a run's last step, or while it starts of its start: the last phase that it has reached, and how long ago.
_PROGRESS: dict[str, Any] = {
    "step": WHOLE_OR_NULL, "total_steps": WHOLE_OR_NULL, "loss": NUMBER_OR_NULL, "step_time_s": NUMBER_OR_NULL,
    "tokens_per_s": NUMBER_OR_NULL, "left_s": NUMBER_OR_NULL, "phase": TEXT_OR_NULL, "phase_s": NUMBER_OR_NULL,
}  # fmt: skip
# The newest good checkpoint; `checkpoint` says it in words, with what is wrong with newer ones.
_SAVED: dict[str, Any] = {"checkpoint_step": WHOLE_OR_NULL, "checkpoint": TEXT}
_STATUS = {
    "anyOf": [
        _object("a run of `launcher run`", state=TEXT, nodes=_list(ANY_OBJECT), **_PROGRESS, **_SAVED),
        _object("a run of `launcher submit`", job_id=TEXT, state=TEXT, **_PROGRESS, **_SAVED),
    ]
}
_FINDING = _object(level=TEXT, check=TEXT, message=TEXT, host=TEXT_OR_NULL)
_TRAP = _object(line=WHOLE, rule=TEXT, severity={"enum": ["error", "warning"]}, found=TEXT, reason=TEXT, fix=TEXT)
_KEY = _object(
    name=TEXT, default={}, required=FLAG, takes=TEXT, unit=TEXT_OR_NULL, meaning=TEXT, source=TEXT_OR_NULL,
    only=TEXT_OR_NULL, example=TEXT_OR_NULL, values=_list(TEXT),
)  # fmt: skip
_CHANGE = _object(name=TEXT, a=TEXT, b=TEXT, worse=NUMBER_OR_NULL, noise=NUMBER_OR_NULL)

_TRIAL = _object(
    layout=TEXT, predicted_step_time_s=NUMBER, predicted_interval_s=_list(NUMBER), measured_step_time_s=NUMBER_OR_NULL,
    steps=WHOLE, note=TEXT,
)  # fmt: skip
_LINK = _object(
    name=TEXT, what=TEXT, nameplate=NUMBER_OR_NULL, reached=NUMBER_OR_NULL, latency_s=NUMBER_OR_NULL,
    sources=_list(TEXT),
)  # fmt: skip

SCHEMAS: Mapping[str, Mapping[str, Any]] = MappingProxyType({
    "plan": {"anyOf": [_PLANS, _COMPARISON, _MIX, _FROM_FILE]},
    "run": _RUN,
    "submit": _object("job_id is null for a dry run", job_id=TEXT_OR_NULL, run_folder=TEXT, argv=_list(TEXT),
                      num_runs=WHOLE, dry_run=FLAG),
    "discover": {"anyOf": [_object("file is null for a dry run", name=TEXT, file=TEXT_OR_NULL, text=TEXT,
                                   notes=_list(TEXT)), _object("a shell script", collector=TEXT)]},
    "check": _object(findings=_list(_FINDING), worst=TEXT, exclude=_list(TEXT)),
    "ls": _object("newest first; since: seconds since 1970", runs=_list(_object(run=TEXT, since=NUMBER, state=TEXT,
                                                                              where=TEXT, **_PROGRESS))),
    "status": _STATUS,
    "logs": _object("rank is null for all of them", run=TEXT, rank=WHOLE_OR_NULL, lines=_list(TEXT)),
    "cancel": _object(run=TEXT, answer=TEXT),
    "warm": _object(running=FLAG, pid=WHOLE_OR_NULL),
    "export": _object("files are texts by name; main is the one that is printed as text", to=TEXT, main=TEXT,
                      files={"type": "object", "additionalProperties": TEXT}, start=TEXT, missing=_list(TEXT),
                      folder=TEXT_OR_NULL),
    "report": _object(file=TEXT, bytes=WHOLE),
    "sync": _object("code: of wandb's upload, 0 for a dry run", run=TEXT, argv=_list(TEXT), left_out=_list(TEXT),
                    writes=_list(TEXT), dry_run=FLAG, code=WHOLE),
    "new": _object(files=_list(TEXT)),
    "calibrate": _object("the cluster file; file is null for a dry run", name=TEXT, file=TEXT_OR_NULL, text=TEXT),
    "tune": _object("in the order they were tried; seconds: of all trials", trials=_list(_TRIAL), seconds=NUMBER),
    "show": {"anyOf": [_object("bytes/s and seconds, null where unknown", cluster=TEXT, links=_list(_LINK),
                               axes=_list(ANY_OBJECT)), _object("with out=", file=TEXT)]},
    "keys": _object("default is null where the key is required", keys=_list(_KEY)),
    "compare": _object("worse: how much worse B is, as a share of A; noise: its 95 % half-width", a=TEXT, b=TEXT,
                       changes=_list(_CHANGE), settings=_list(TEXT), failed=WHOLE),
    "lint": {"type": "object", "description": "by script", "additionalProperties": _list(_TRAP)},
})  # fmt: skip


def schema_of(command: str) -> dict[str, Any]:
    """The schema of a command's document, errors included; raises InputError for one that prints none."""
    if command not in SCHEMAS:
        raise InputError(f"`launcher {command}` prints no JSON document: those that do are {', '.join(SCHEMAS)}")
    return {"$schema": DIALECT, "title": f"launcher {command} output=json", "anyOf": [SCHEMAS[command], ERROR]}
