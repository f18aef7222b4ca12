"""Every key is read: those of hardware, layout and training change what comes out, all others reach code."""

from __future__ import annotations

import ast
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import pytest

from launcher import Job
from launcher.agent.rank_env import chosen_variables
from launcher.cli import main
from launcher.commands.check import check_here
from launcher.config.compose import load
from launcher.config.overrides import every_key
from launcher.config.settings import Settings
from launcher.cost.model import CostModel
from launcher.errors import LauncherError
from launcher.model import Training
from launcher.planner import compare
from launcher.planner.build import make_plan
from launcher.planner.document import estimate_data, job_data, plans_document
from launcher.planner.explain import reasons
from launcher.planner.options import RECIPES
from launcher.planner.search import search
from launcher.preflight.checks import preflight
from launcher.report import terminal
from launcher.schema import Entry, entries, walk
from launcher.slurm.request import Where, submit_request
from launcher.slurm.traffic import node_traffic
from tests.cluster import texts
from tests.launch.test_preflight import site, topology_file

ROOT = Path(__file__).resolve().parent.parent
SPEED = {entry.name for entry in entries(Training)}
DGX = ["cluster=dgx_a100_80g", "cluster.num_nodes=4", "cluster.nodes_per_leaf=2", "model=gpt3_350m",
       "train.global_batch=32", "launch=slurm"]  # fmt: skip
# Jobs in which keys may show: whole searches, layouts that use one thing or another, CPUs, MIG slices.
JOBS: dict[str, list[str]] = {
    "a search": [*DGX, "layout.micro_batch=1"],
    "tensor and pipeline parallel": [*DGX, "layout.tp=4", "layout.pp=2", "layout.recompute=full"],
    "sharded": [*DGX, "layout.tp=1", "layout.pp=1", "layout.zero_stage=3", "layout.recompute=full"],
    "Llama": [*DGX, "model=llama3_8b", "layout.tp=2", "layout.pp=4", "train.attention=math"],
    "other software": [*DGX, "stack=megatron_lm", "layout.tp=4", "layout.pp=2", "layout.recompute=full"],
    "CPUs": ["cluster.node.cores=2"],  # whatever machine this is
    "slices": ["cluster=a100_mig_3g", "model=gpt_tiny", "launch=slurm"],
}
CURVE = "[{operation: all_reduce, link: nvlink, ranks: 8, bytes: [1024], time_us: [90]}]"
# Values for keys if their metadata gives no second legal one.
VALUES = {
    "cluster.node.nic_names": ["[a0,a1,a2,a3,a4,a5,a6,a7]"],
    "cluster.node.domains": ["[[0,1,2,3],[4,5,6,7]]"],
    "cluster.node.nvlinks": [str([[2 * (abs(a - b) in (1, 7)) for b in range(8)] for a in range(8)]).replace(" ", "")],
    "cluster.node.nic_of_gpu": ["[0,1,4,5,2,3,6,7]"],
    "cluster.node.numa_of_gpu": ["[0,0,1,1,2,2,3,3]"],
    "cluster.leaf_sizes": ["[1,3]"],
    "cluster.node.gpu.mig_slice": ["3g.40gb"],
    "cluster.node.gpu.mig_profile": ["3g.40gb", "1g.10gb"],
    "cluster.default_layout": ["{tp: 4, pp: 1, dp: 2}"],
    "layout.axis_order": ["pp-tp-cp-dp"],
    "layout.layer_split": ["[11,13]", "[13,11]"],
    "layout.ep": ["2"],
    "layout.shard_group": ["8"],
    "layout.memory_margin": ["0.7"],
    "stack.year": ["2021"],
    "cluster.measured.date": ["'2026-11-29'"],
    "cluster.measured.hosts": ["[node1]"],
    "cluster.measured.versions": ["{torch: '2.13'}"],
    "cluster.measured.command": ["calibrate"],
    "cluster.measured.collectives": [
        "[{operation: all_reduce, link: nvlink, ranks: 8, bytes: [1024], time_us: [900]}]"
    ],
    "cluster.measured.checkpoint_write_gbytes_per_s": ["{n8: 2.5}"],
    "cluster.measured.checkpoint_read_gbytes_per_s": ["{n8: 4}"],
}
# Keys that count together with another one.
WITH = {
    "stack.triton_attention": ["train.attention=flash1"],
    "stack.late_gradients": ["layout.tp=4", "layout.pp=1", "layout.micro_batch=1"],
    "stack.compiles_loss": ["stack=torchtitan", "stack.compile=true", "layout.tp=1", "layout.pp=1"],
    "stack.expandable_segments": ["stack=torchtitan", "layout.tp=1", "layout.pp=1"],
    "stack.caches_fp8": [
        *("cluster=dgx_h100", "train.gemm_dtype=fp8", "stack=megatron_lm", "layout.tp=8", "layout.pp=1"),
    ],
    "stack.joint_gate": ["stack=megatron_lm", "model=llama3_8b", "layout.tp=8", "layout.pp=1"],
    "stack.gathers_again": [
        *("stack=megatron_lm", "layout.tp=8", "layout.pp=1", "layout.sequence_parallel=true"),
    ],
    "cluster.rails": [
        *("cluster.oversubscription=4", "cluster.nodes_per_leaf=8", "model=mixtral_8x7b", "model.layers=4"),
        *("layout.tp=2", "layout.ep=8"),
    ],
    "cluster.pxn": [
        *("cluster.oversubscription=4", "cluster.nodes_per_leaf=8", "model=mixtral_8x7b", "model.layers=4"),
        *("layout.tp=2", "layout.ep=8"),
    ],
    "cluster.node.nvlinks": ["cluster.node.nvlink=direct"],
    "cluster.node.nic_of_gpu": [
        *("cluster.node.nic_names=[a0,a1,a2,a3,a4,a5,a6,a7]", "cluster.rails=8", "cluster.nodes_per_leaf=8"),
    ],
    "cluster.node.gpu.pcie_gbytes_per_s": ["cluster.node.domain_size=1", "layout.tp=1", "layout.pp=1"],
    "cluster.leaf_sizes": ["cluster.oversubscription=4"],
    "cluster.nodes_per_pod": ["cluster.core_oversubscription=4"],
    "cluster.core_oversubscription": ["cluster.nodes_per_pod=2"],
    "cluster.node.host_memory_gib": ["train.offload_optimizer=true", "model=gpt3_13b"],
    "cluster.measured.date": [f"cluster.measured.collectives={CURVE}"],
    "cluster.measured.hosts": [f"cluster.measured.collectives={CURVE}"],
    "cluster.measured.versions": [f"cluster.measured.collectives={CURVE}"],
    "cluster.measured.command": [f"cluster.measured.collectives={CURVE}"],
    "cluster.measured.engine.micro_batch_ms": ["cluster.measured.engine.layer_ms=1"],
    "cluster.measured.engine.step_ms": ["cluster.measured.engine.layer_ms=1"],
    "cluster.measured.engine.unit_ms": ["cluster.measured.engine.layer_ms=1", "layout.zero_stage=1"],
    "cluster.measured.engine.call_ms": ["cluster.measured.engine.layer_ms=1", "layout.dp=8"],
    "cluster.measured.engine.chain": ["cluster.measured.engine.layer_ms=1", "layout.dp=8"],
    "cluster.measured.engine.idle": ["cluster.measured.engine.layer_ms=1", "layout.dp=8"],
    "cluster.measured.engine.byte_ns": ["cluster.measured.engine.layer_ms=1", "layout.dp=8"],
    "cluster.measured.engine.element_ns": ["cluster.measured.engine.layer_ms=1", "layout.dp=8"],
    "cluster.measured.engine.error": ["cluster.measured.engine.layer_ms=1"],
    "cluster.node.gpu.memory_gib": ["cluster.node.gpu.memory_mib=null", "cluster.node.gpu.memory_gib=80"],
    "layout.layer_split": ["layout.pp=2"],
    "stack.gathers_every_pass": ["layout.zero_stage=2", "layout.tp=1", "layout.pp=1"],
    "stack.empty_ends": ["stack=megatron_lm", "model.layers=14", "layout.tp=8", "layout.pp=4"],
    "stack.pipeline_shards_gradients": ["layout.pp=2", "layout.zero_stage=2"],
    "layout.ep": ["model=mixtral_8x7b", "model.layers=4", "layout.tp=1"],
    "layout.virtual_stages": ["layout.pp=4"],
    "layout.tp_across_domains": ["cluster.node.domain_size=2"],
}


def without_the_duplicate(job: Sequence[str], more: list[str]) -> list[str]:
    keys = {word.partition("=")[0] for word in more}
    return [*(word for word in job if word.partition("=")[0] not in keys), *more]


@cache
def loaded(words: tuple[str, ...]) -> Settings:
    return load(words)


@cache
def outcome(words: tuple[str, ...], look: str) -> str:
    """What one look at a job of these overrides says, as a text."""
    settings = loaded(words)
    try:
        return LOOKS[look](settings)
    except LauncherError as error:
        return str(error)


def _checks(settings: Settings) -> str:
    with TemporaryDirectory() as folder, redirect_stderr(io.StringIO()) as said:
        here = site(
            NCCL_IB_DISABLE="1", NCCL_P2P_DISABLE="1", NCCL_TOPO_FILE=topology_file(Path(folder), texts.NCCL_XML)
        )
        found = preflight(settings.job.cluster, run_folder=Path(folder), free_bytes=0, site=here)
        if settings.options.slurm is not None:
            check_here(settings, settings.options.slurm, [])
    messages = [finding.message for finding in found if finding.check != "run folder"]
    return "\n".join([*messages, said.getvalue()]).replace(folder, "FOLDER")


def _estimate(settings: Settings) -> str:
    return json.dumps(estimate_data(Job((), settings).estimate()))


def _plan(settings: Settings) -> str:
    model = CostModel(settings.job)
    result = search(settings.job, settings.request, top=2, model=model)
    why = reasons(result, model)
    shown = io.StringIO()
    terminal.show_plans(shown, result, why, seconds=0.0)
    document = plans_document(result, why, seconds=0.0)
    for name in job_data(settings.job):
        del document[name]  # it repeats the keys, whether something reads them or not
    return json.dumps(document) + shown.getvalue()


def _comparison(settings: Settings) -> str:
    other = load(["cluster=fly_l40s", "model=gpt_tiny", "train.global_batch=32"])
    cases = [compare.Case(name, s.job, s.request) for name, s in (("this", settings), ("other", other))]
    return json.dumps(compare.comparison_data(compare.compare(cases, tokens=1e9)))


def _submission(settings: Settings) -> str:
    assert settings.options.slurm is not None or settings.options.launch.place == "local"
    plan = make_plan(settings.job, settings.request, settings.run_options)
    traffic = str(node_traffic(plan))
    if settings.options.slurm is None:
        return traffic
    request = submit_request(plan, settings.options.slurm, Where(Path("/r"), Path("/s"), "python"))
    return f"{traffic}{request}{chosen_variables(plan, {})}"


# A plan, an estimate, a placement and the checks: the quick ones first, since the first difference is enough.
LOOKS: dict[str, Callable[[Settings], str]] = {
    "estimate": _estimate, "checks": _checks, "submission": _submission, "table": _comparison, "plan": _plan
}  # fmt: skip


def behaving() -> list[str]:
    """The keys of cluster, stack and layout, and those of train that an estimate needs."""
    groups = ("cluster.", "stack.", "layout.")
    return [k for k in every_key() if k.startswith(groups) or (k.startswith("train.") and k[6:] in SPEED)]


def values(key: str, entry: Entry, before: Any) -> Iterator[str]:
    """Second values of a key, by its rule."""
    yield from VALUES.get(key, [])
    rule, kind = entry.key, entry.kind
    if rule.choices:
        yield from rule.choices
    elif kind is bool:
        yield from ("true", "false")
    elif kind in (int, float):
        start = before if isinstance(before, int | float) and not isinstance(before, bool) else 1
        found = (start * 2, start * 4, start + 1, start / 2, start / 4, start - 1, 2, 4, 0.5, 1)
        yield from (f"{int(v) if kind is int and rule.scale == 1 else v}" for v in found if v != before)
    elif rule.names:
        yield from (f"{{{name}: {v}}}" for name in rule.names for v in (3, 300))
    elif kind is str:
        yield "something_else"


def changes(key: str, entry: Entry, job: list[str]) -> bool:
    """Whether some legal value of the key changes what comes out of a job."""
    words = tuple(without_the_duplicate(job, WITH.get(key, [])))
    try:
        settings = loaded(words)
    except LauncherError:
        return False
    now: Any = settings.config
    for part in key.split("."):
        now = now.get(part) if isinstance(now, dict) else None
    for value in values(key, entry, now):
        changed = tuple(without_the_duplicate(words, [f"{key}={value}"]))
        try:
            loaded(changed)
        except LauncherError:
            continue  # not legal in this job
        if any(outcome(changed, look) != outcome(words, look) for look in LOOKS):
            return True
    return False


@pytest.mark.parametrize("job", JOBS)
def test_what_comes_out_of_a_job_is_the_same_each_time(job: str) -> None:
    words = tuple(JOBS[job])
    first = [outcome(words, look) for look in LOOKS]
    loaded.cache_clear()
    assert [outcome.__wrapped__(words, look) for look in LOOKS] == first


@pytest.mark.parametrize("key", behaving())
def test_a_key_of_hardware_layout_or_training_changes_what_comes_out(key: str) -> None:
    entry, of_cpus = every_key()[key], key.startswith(("cluster.measured.engine.", "cluster.default_layout"))
    jobs = sorted(JOBS, key=lambda job: (job == "CPUs") != of_cpus)  # the likely ones first
    assert any(changes(key, entry, JOBS[job]) for job in jobs), f"nothing reads {key}: delete it"


def trees() -> Iterator[ast.Module]:
    for folder in ("launcher", "recipes"):
        yield from (ast.parse(file.read_text()) for file in (ROOT / folder).rglob("*.py"))


@cache
def names_that_are_read() -> frozenset[str]:
    """Attributes that code reads of any value, and the words of tables that name some (getattr reads them)."""
    found = set()
    for tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
                found |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
            elif isinstance(node, ast.Dict):
                found |= {k.value for k in node.keys if isinstance(k, ast.Constant) and isinstance(k.value, str)}
    return frozenset(found)


def every_entry() -> dict[str, Entry]:
    """Every key, with those of all recipes."""
    recipes = {f"recipe.{name}": entry for cls in RECIPES.values() for name, entry in walk(cls)}
    return {**every_key(), **recipes}


@pytest.mark.parametrize("key", [key for key in every_entry() if key not in behaving()])
def test_the_field_of_any_other_key_is_read_by_code(key: str) -> None:
    entry = every_entry()[key]
    assert not entry.kept or entry.field in names_that_are_read(), f"nothing reads {key}: delete it"


@pytest.mark.parametrize("key", every_entry())
def test_every_key_has_a_meaning_and_every_number_a_unit(key: str) -> None:
    entry = every_entry()[key]
    assert entry.key.meaning
    number = {int, float} & {entry.kind, *get_args(entry.kind)}
    assert not number or entry.key.unit, f"{key} needs a unit: one of what, or '1' for a plain number"


def test_the_page_of_keys_is_what_the_command_writes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "output=markdown"]) == 0
    assert (ROOT / "configs" / "README.md").read_text() == capsys.readouterr().out, (
        "write it again: launcher keys output=markdown > configs/README.md"
    )


def test_keys_are_found_by_prefix_and_by_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "layout", "output=json"]) == 0
    found = json.loads(capsys.readouterr().out)["keys"]
    assert {key["name"].partition(".")[0] for key in found} == {"layout"}
    assert main(["keys", "checkpoint", "output=json"]) == 0
    assert "train.keep_last" in {key["name"] for key in json.loads(capsys.readouterr().out)["keys"]}
    assert main(["keys", "recipe.sizes"]) == 0
    assert "(recipe=collectives only)" in capsys.readouterr().out
    assert main(["keys", "train.chekpoint_every"]) == 2
    assert "did you mean train.checkpoint_every" in capsys.readouterr().err
