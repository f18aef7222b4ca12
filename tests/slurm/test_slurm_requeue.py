"""When a job comes back, when it does not, and what it does with other nodes than it was planned for."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from plans import plan

from launcher.errors import InputError
from launcher.run.checkpoints import MANIFEST, VERSION, folder_name, temporary_name, write_manifest
from launcher.run.folder import create_run_folder
from launcher.run.ledger import END, PLACED, START, JobEvent, Ledger, append_event
from launcher.run.metrics import MetricsFile, StepMetrics
from launcher.run.node_state import NodeState
from launcher.slurm.progress import newest_change, newest_checkpoint, starts, was_stopped
from launcher.slurm.replan import Fit, Hosts, fit_allocation
from launcher.slurm.request import Where
from launcher.slurm.requeue import JobStart, Outcome, Saved, decide, requeues, start_problem
from launcher.slurm.settings import SlurmSettings
from launcher.slurm.sweep import SweepMember, results, sweep_request, table, update_table, write_sweep


def at(step: int) -> Saved:
    """A checkpoint that was written in the order of steps."""
    return Saved(step, 1_700_000_000_000 + step)


FAILED = Outcome(code=1, signalled=False, stopped=False, lost_nodes=(), saved=at(20))
FRESH, FIRST, LAST = JobStart(0), JobStart(0, at(10)), JobStart(50, at(10))

DECISIONS = {
    "the end": (replace(FAILED, code=0), FIRST, True, False, "complete"),
    "an application error": (FAILED, FIRST, True, False, "failed by itself"),
    "a signal and a new checkpoint": (replace(FAILED, signalled=True), FIRST, True, True, "Slurm's signal"),
    "a signal and no new checkpoint": (
        replace(FAILED, signalled=True), JobStart(0, at(20)), True, False, "no new checkpoint",
    ),
    "a signal before any checkpoint": (
        replace(FAILED, signalled=True, saved=Saved()), FRESH, True, False, "no new checkpoint",
    ),
    "preemption that only the tasks saw": (replace(FAILED, stopped=True), FIRST, True, True, "preemption"),
    "a lost node, although nothing was saved": (
        replace(FAILED, lost_nodes=("n7",), saved=at(10)), FIRST, True, True, "n7 no longer answered",
    ),
    "preemption, although nothing was saved": (
        replace(FAILED, preempted=True, saved=at(10)), FIRST, True, True, "preempted by Slurm",
    ),
    "preemption at the last start": (replace(FAILED, preempted=True), LAST, True, True, "preempted by Slurm"),
    "preemption, requeue forbidden": (replace(FAILED, preempted=True), FIRST, False, False, "launch.requeue=false"),
    "a signal, requeue forbidden": (replace(FAILED, signalled=True), FIRST, False, False, "launch.requeue=false"),
    "a signal at the last start": (replace(FAILED, signalled=True), LAST, True, False, "max_requeues=50"),
}  # fmt: skip


@pytest.mark.parametrize("case", DECISIONS)
def test_what_ended_a_start_decides_whether_it_is_requeued(case: str) -> None:
    outcome, start, allowed, requeued, why = DECISIONS[case]
    decision = decide(outcome, [start], requeue=allowed, max_requeues=50)
    assert (decision.requeue, decision.code == 0) == (requeued, outcome.code == 0)
    assert why in decision.why


def test_a_crash_loop_is_distinguished_from_progress() -> None:
    stuck = [JobStart(i, at(40)) for i in range(4)]
    assert start_problem(stuck[:3], max_requeues=50) is None
    assert "from the checkpoint of step 40" in str(start_problem(stuck, max_requeues=50))
    assert start_problem([*stuck, JobStart(4, at(41))], max_requeues=50) is None
    assert "without any checkpoint" in str(start_problem([JobStart(i) for i in range(4)], max_requeues=50))


def test_the_number_of_requeues_is_bounded_also_with_progress() -> None:
    history = [JobStart(i, at(i)) for i in range(6)]
    assert start_problem(history, max_requeues=5) is None
    assert "launch.max_requeues=4" in str(start_problem(history, max_requeues=4))


def test_what_slurm_sent_back_is_no_crash_and_costs_no_requeue() -> None:
    preempted = [JobStart(i, at(40), sent_back=True) for i in range(60)]
    assert start_problem([*preempted, JobStart(60, at(40))], max_requeues=50) is None
    crashes = [JobStart(60 + i, at(40)) for i in range(3)]
    assert start_problem([*preempted, *crashes], max_requeues=50) is None
    assert "a crash loop: 4 starts" in str(start_problem([*preempted, *crashes, JobStart(63, at(40))], max_requeues=50))
    assert requeues([*preempted, *crashes]) == 2
    assert requeues([JobStart(0, at(1), sent_back=True), JobStart(1, at(2)), JobStart(0, at(3))]) == 0  # of another job
    stopped = replace(FAILED, signalled=True, saved=at(99))
    assert decide(stopped, [*preempted, JobStart(60, at(40))], requeue=True, max_requeues=1).requeue


def test_a_job_that_always_comes_back_is_bounded_by_the_number_of_requeues_alone() -> None:
    stopped = replace(FAILED, signalled=True, saved=Saved())
    assert decide(stopped, [FRESH], requeue=True, max_requeues=50, always=True).requeue
    assert not decide(stopped, [JobStart(50)], requeue=True, max_requeues=50, always=True).requeue
    assert not decide(FAILED, [FRESH], requeue=True, max_requeues=50, always=True).requeue  # failed by itself
    assert start_problem([JobStart(i) for i in range(9)], max_requeues=50, always=True) is None
    assert start_problem([JobStart(i) for i in range(9)], max_requeues=7, always=True)


NEWER = {
    "the next step": (at(50), at(40), True),
    "the same": (at(40), at(40), False),
    "the one before, as the newest was damaged": (at(40), at(60), False),
    "a step before the damaged one, saved since": (Saved(50, at(61).at), at(60), True),
    "the step of the damaged one, saved again": (Saved(60, at(61).at), at(60), True),
    "the first": (at(5), Saved(), True),
    "none any more": (Saved(), at(5), False),
    "none yet": (Saved(), Saved(), False),
    "a step without a time, in the ledger of an earlier launcher": (Saved(50, 1), Saved(40), True),
}


@pytest.mark.parametrize("case", NEWER)
def test_what_was_written_since_a_start_is_progress_whatever_its_step(case: str) -> None:
    now, before, newer = NEWER[case]
    stopped = replace(FAILED, signalled=True, saved=now)
    assert decide(stopped, [JobStart(0, before)], requeue=True, max_requeues=50).requeue is newer
    loop = start_problem([*(JobStart(i, before) for i in range(3)), JobStart(3, now)], max_requeues=50)
    assert (loop is None) is newer


def test_a_job_that_is_submitted_again_after_a_crash_loop_may_start() -> None:
    stuck = [JobStart(i, at(40)) for i in range(4)]
    assert start_problem([*stuck, JobStart(0, at(40))], max_requeues=50) is None
    assert "a crash loop: 4 starts" in str(start_problem([*stuck, *stuck], max_requeues=50))


def test_what_changes_where_a_script_saves_is_progress(tmp_path: Path) -> None:
    folder = tmp_path / "ckpts"
    assert newest_change(folder) == Saved()
    (folder / "epoch").mkdir(parents=True)
    assert newest_change(folder) == Saved()  # a folder alone is no checkpoint
    (folder / "epoch" / "a.pt").write_text("")
    os.utime(folder / "epoch" / "a.pt", (1e9, 1e9))
    (folder / "gone").symlink_to("nowhere")
    assert newest_change(folder) == Saved(at=10**12)
    os.utime(folder / "epoch" / "a.pt", (1e9 + 1, 1e9 + 1))
    assert newest_change(folder) == newest_change(folder / "epoch" / "a.pt") == Saved(at=10**12 + 1000)
    stuck = [JobStart(i, Saved(at=10**12)) for i in range(4)]
    assert "from what is in launch.progress" in str(start_problem(stuck, max_requeues=50))


@pytest.mark.parametrize(("given", "kept"), [(True, "progress"), ("always", "always"), (False, "never")])
def test_a_requeue_is_wanted_where_there_is_progress_always_or_never(given: object, kept: str) -> None:
    settings = SlurmSettings.from_config({"requeue": given})
    assert (settings.requeue, settings.comes_back) == (kept, given is not False)
    with pytest.raises(InputError, match="must be true, false or always"):
        SlurmSettings.from_config({"requeue": "sometimes"})


def test_progress_is_read_from_the_run_folder(tmp_path: Path) -> None:
    folder = create_run_folder(tmp_path)
    assert newest_checkpoint(folder) == Saved()
    for name in (folder_name(7), folder_name(120), temporary_name(200), "notes"):
        (folder.checkpoints / name).mkdir(parents=True)
    for step in (7, 120):
        write_manifest(folder.checkpoints / folder_name(step), {"version": VERSION, "files": {}})
        os.utime(folder.checkpoints / folder_name(step) / MANIFEST, (step, step))
    assert newest_checkpoint(folder) == Saved(120, 120_000)
    (folder.checkpoints / folder_name(120) / MANIFEST).write_text("{}")
    assert newest_checkpoint(folder) == Saved(7, 7_000)
    append_event(folder.ledger, JobEvent(START, "17", 0.0, {"restart": 2, "checkpoint_step": 7}))
    Ledger(folder.ledger, node=0, began=0.0).note("met")
    assert starts(folder) == [JobStart(2, Saved(7))]
    append_event(folder.ledger, JobEvent(END, "17", 0.0, {"code": 1, "why": "preempted", "sent_back": True}))
    append_event(folder.ledger, JobEvent(START, "17", 0.0, {"restart": 3, **Saved(7, 7_000).details()}))
    assert starts(folder) == [JobStart(2, Saved(7), sent_back=True), JobStart(3, Saved(7, 7_000))]


@pytest.mark.parametrize(
    ("states", "stopped"),
    [
        (["stopped", "stopped"], True),
        (["stopped", "stopping"], True),
        (["stopped", "failed"], False),
        (["running", "stopped"], False),
        (["done", "done"], False),
        (["stopped"], False),
    ],
)
def test_a_run_was_stopped_when_its_agents_say_so_and_none_failed(
    tmp_path: Path, states: list[str], stopped: bool
) -> None:
    folder = create_run_folder(tmp_path)
    for node, state in enumerate(states):
        NodeState(node, f"n{node}", 1, 0.0, state, 1, 0, 3, "", "").write(folder)
    assert was_stopped(folder, num_nodes=2) is stopped


def fit(num_hosts: int, **keys: object) -> tuple[object, list[str]]:
    reported: list[str] = []
    hosts = tuple(f"n{i}" for i in range(num_hosts))
    settings = SlurmSettings.from_config(keys)
    return fit_allocation(plan(), Hosts(hosts), settings, notify=reported.append).plan, reported


def test_the_plan_stays_when_the_allocation_fits() -> None:
    assert fit(4)[0] == plan()


def test_fewer_nodes_get_a_new_layout_with_the_same_batch() -> None:
    found, reported = fit(2, replan="shrink")
    assert found.layout.world_size == 16
    assert found.job.cluster.num_nodes == 2
    assert found.job.training == plan().job.training
    assert "2 nodes of test_cluster instead of 4" in reported[0]


@pytest.mark.parametrize(("hosts", "replan", "allowed"), [(2, "never", "shrink or any"), (6, "shrink", "any")])
def test_another_number_of_nodes_needs_leave(hosts: int, replan: str, allowed: str) -> None:
    with pytest.raises(InputError, match=rf"launch\.replan={allowed}"):
        fit(hosts, replan=replan)


def test_spares_leave_the_plan_as_it_is() -> None:
    assert fit(6, spares=2) == (plan(), [])
    assert fit(5, spares=2) == (plan(), [])
    with pytest.raises(InputError, match=r"launch\.replan=any"):
        fit(7, spares=2)


def other_gpus(*types: str, **keys: object) -> tuple[Fit, list[str]]:
    """The planned cluster has GPUs called a100; b200 means similar nodes with twice the speed."""
    planned = plan().job.cluster
    gpu = replace(planned.node.gpu, name="b200", peak_flops={"bf16": 624e12, "fp32": 39e12})
    clusters = {"b200": replace(planned, name="newer", num_nodes=1, node=replace(planned.node, gpu=gpu))}
    hosts = Hosts(tuple(f"n{i}" for i in range(len(types))), {f"n{i}": t for i, t in enumerate(types)}, clusters)
    reported: list[str] = []
    return fit_allocation(
        plan(), hosts, SlurmSettings.from_config({"replan": "any", **keys}), notify=reported.append
    ), reported


def test_other_gpus_get_a_layout_of_their_own_with_the_same_batch() -> None:
    found, reported = other_gpus(*["b200"] * 4)
    assert (found.plan.job.cluster.name, found.plan.job.cluster.num_nodes) == ("newer", 4)
    assert found.plan.job.training == plan().job.training
    assert "4 nodes of newer instead of 4 of test_cluster" in reported[0]
    assert other_gpus(*["a100"] * 4) == (Fit(plan(), ("n0", "n1", "n2", "n3")), [])


def test_of_mixed_gpus_the_faster_plan_runs_and_the_others_idle() -> None:
    found, reported = other_gpus("a100", "b200", "b200", "a100", "b200", "b200")
    assert found.hosts == ("n1", "n2", "n4", "n5")
    assert "n0, n3 stay idle" in reported[1]
    assert other_gpus(*["a100"] * 4, "b200", min_nodes=2)[0].hosts == ("n0", "n1", "n2", "n3")


def test_more_nodes_are_used_where_that_is_allowed() -> None:
    assert fit(8, replan="any")[0].layout.world_size == 64


def member(folder: Path, *, end: dict[str, object] | None) -> None:
    run = create_run_folder(folder)
    append_event(run.ledger, JobEvent(START, "17_0", 0.0, {"restart": 0, "checkpoint_step": None}))
    append_event(run.ledger, JobEvent(PLACED, "17_0", 0.0, {"layout": "tp8 pp1 dp4"}))
    metrics = MetricsFile(run.metrics)
    for step in (1, 2, 3):
        metrics.log(StepMetrics(step, loss=5.0 - step, step_s=0.1 * step))
    metrics.close()
    if end:
        append_event(run.ledger, JobEvent(END, "17_0", 0.0, end))


def test_a_sweep_ends_in_one_table(tmp_path: Path) -> None:
    words = ("train.lr=1", "train.lr=2", "train.lr=3")
    write_sweep(tmp_path, [SweepMember((word,), plan()) for word in words])
    member(tmp_path / "0", end={"code": 0, "why": "the run is complete"})
    member(tmp_path / "1", end=None)
    (tmp_path / "2").mkdir()
    rows = results(tmp_path)
    assert [row["state"] for row in rows] == ["done", "running", "waiting"]
    assert [row["state"] for row in results(tmp_path, ended=True)] == ["done", "ended by Slurm", "never started"]
    cancelled = results(tmp_path, members={1: "CANCELLED", 2: "CANCELLED", 0: "COMPLETED"})
    assert [row["state"] for row in cancelled] == ["done", "ended by Slurm (cancelled)", "never started (cancelled)"]
    assert (rows[0]["loss"], rows[0]["step_s"], rows[0]["layout"]) == (2.0, pytest.approx(0.2), "tp8 pp1 dp4")
    update_table(tmp_path / "0")
    assert (tmp_path / "results.txt").read_text() == table(rows) + "\n"
    assert [line.split()[0] for line in table(rows).splitlines()] == ["run", "0", "1", "2"]


def test_a_folder_that_is_no_sweep_has_no_table(tmp_path: Path) -> None:
    update_table(tmp_path / "0")
    assert results(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_the_runs_of_a_sweep_must_ask_for_the_same_nodes() -> None:
    members = [
        SweepMember(("cluster.num_nodes=4",), plan()),
        SweepMember(("cluster.num_nodes=2",), plan(nodes=2, pp=1)),
    ]
    with pytest.raises(InputError, match=r"run 1 \(cluster\.num_nodes=2\) wants 2 nodes"):
        sweep_request(members, SlurmSettings(), Where(Path("/s"), Path("/t"), "python"))
