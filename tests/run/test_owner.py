"""A run folder has one owner: a live one is respected, a stale one is recognised, and a refusal replaces nothing."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from launcher import process
from launcher.commands.claim import claimed
from launcher.errors import InputError
from launcher.run import owner as owners
from launcher.run import status as statuses
from launcher.run.folder import RunFolder
from launcher.run.owner import (
    Owner,
    cancelled_since_claim,
    claim,
    claim_as_job,
    hand_to_job,
    mark_cancelled,
    read_owner,
    release,
    this_process,
    was_cancelled,
    withdraw,
)
from launcher.run.status import SAME_CANCEL_S, status, stop


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


@pytest.fixture
def other() -> Iterator[Owner]:
    """Another live process of this machine. In a container the parent of this one may have no number."""
    with subprocess.Popen(["sleep", "1000"]) as sleeps:
        yield replace(this_process(), pid=sleeps.pid, started_at=process.started_at(sleeps.pid))
        sleeps.kill()


def test_a_second_run_is_refused_with_the_name_of_the_first(folder: RunFolder, other: Owner) -> None:
    claim(folder, other)
    with pytest.raises(InputError, match=rf"is running as process {other.pid} on {other.host}.*launcher cancel"):
        claim(folder, this_process())
    assert read_owner(folder) == other


STALE: dict[str, Callable[[Owner], Owner]] = {
    "a process that has ended": lambda o: replace(o, pid=2**22 + 1),
    "another process with its number": lambda o: replace(o, started_at=o.started_at - 100),
    "a process from before the machine's last boot": lambda o: replace(o, boot_id="another"),
    "a run that has ended": lambda o: replace(o, ended="done"),
}


@pytest.mark.parametrize("change", STALE.values(), ids=STALE)
def test_a_lock_that_was_left_behind_is_taken_over(
    change: Callable[[Owner], Owner], folder: RunFolder, other: Owner
) -> None:
    claim(folder, change(other))
    before = claim(folder, this_process())
    assert before == change(other)
    assert read_owner(folder) == replace(this_process(), since=read_owner(folder).since)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("ended", "message"), [(False, "is running as job 17"), (None, "left as running as job 17.*remove"), (True, None)]
)
def test_a_batch_job_owns_its_folder_until_slurm_says_that_it_has_ended(
    ended: bool | None, message: str | None, folder: RunFolder
) -> None:
    claim(folder, this_process(job_id="17"))
    if message is None:
        claim(folder, this_process(), job_ended=lambda _: ended)
        return
    with pytest.raises(InputError, match=message):
        claim(folder, this_process(), job_ended=lambda _: ended)


def test_a_process_of_another_host_cannot_be_looked_at_and_is_respected(folder: RunFolder, other: Owner) -> None:
    claim(folder, replace(other, host="far-away"))
    with pytest.raises(InputError, match=r"far-away.*cannot be asked.*remove .*owner\.json"):
        claim(folder, this_process())


def test_a_job_that_starts_again_keeps_its_folder(folder: RunFolder) -> None:
    claim(folder, this_process(job_id="17"))
    claim_as_job(folder, "17", job_ended=lambda _: False)
    with pytest.raises(InputError, match="is running as job 17"):
        claim_as_job(folder, "18", job_ended=lambda _: False)


def test_a_job_that_begins_before_its_id_is_noted_waits_for_it(folder: RunFolder) -> None:
    submitter = replace(this_process(submitting=True), host="login")
    claim(folder, submitter)
    later = threading.Timer(0.5, lambda: hand_to_job(folder, submitter, "17"))
    later.start()
    claim_as_job(folder, "17", job_ended=lambda _: False)
    later.join()
    present = read_owner(folder)
    assert present is not None and (present.job_id, present.submitting) == ("17", False)


def test_of_many_that_come_at_once_one_gets_the_folder(folder: RunFolder) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom launcher.run.folder import RunFolder\n"
        "from launcher.run.owner import claim, this_process\nfrom launcher.errors import InputError\n"
        "time.sleep(max(0, float(sys.argv[2]) - time.time()))\n"
        "try:\n    claim(RunFolder(Path(sys.argv[1])), this_process())\n    print('mine', flush=True)\n"
        "except InputError:\n    print('refused', flush=True)\nsys.stdin.read()\n"
    )
    at = str(time.time() + 2)
    command = [sys.executable, "-c", code, str(folder.path), at]
    rivals = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    said = [rival.stdout.readline() for rival in rivals if rival.stdout]
    for rival in rivals:
        rival.communicate()
    assert sorted(said) == ["mine\n", *["refused\n"] * 5]


def test_a_claim_that_is_withdrawn_leaves_the_owner_from_before(folder: RunFolder, other: Owner) -> None:
    earlier = replace(other, ended="done")
    claim(folder, earlier)
    withdraw(folder, this_process(), claim(folder, this_process()))
    assert read_owner(folder) == earlier


def test_the_end_of_a_run_is_written_down_and_a_cancel_is_called_so(folder: RunFolder) -> None:
    claim(folder, this_process())
    release(folder, this_process(), ended="failed")
    assert status(folder).state == "failed"
    claim(folder, this_process())
    mark_cancelled(folder, this_process())
    release(folder, this_process(), ended="failed")
    assert status(folder).state == "cancelled"


def test_a_later_owner_is_not_released_by_an_earlier_one(folder: RunFolder, other: Owner) -> None:
    claim(folder, other)
    release(folder, this_process(), ended="done")
    assert read_owner(folder) == other


def test_a_run_is_starting_from_the_moment_it_has_its_folder(folder: RunFolder, other: Owner) -> None:
    claim(folder, other)
    assert status(folder).state == "starting"
    claim_stale = replace(other, pid=2**22 + 1)
    release(folder, other, ended="done")
    claim(folder, claim_stale)
    assert status(folder).state == "lost"


@pytest.mark.parametrize("ahead_s", [-600.0, 0.0, 600.0])
def test_a_cancel_counts_although_the_clocks_of_two_hosts_differ(folder: RunFolder, ahead_s: float) -> None:
    """`ahead_s`: of the host that the job runs on."""
    claim(folder, replace(this_process(job_id="17"), since=time.time() + ahead_s))
    assert not cancelled_since_claim(folder)
    mark_cancelled(folder, this_process(job_id="17"))
    assert cancelled_since_claim(folder)
    claim_as_job(folder, "17", job_ended=lambda _: None)  # requeued by hand: it starts again
    assert was_cancelled(folder)
    assert not cancelled_since_claim(folder)


@pytest.fixture
def signalled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that would have got a signal."""
    pids: list[int] = []
    monkeypatch.setattr(process, "signal_all", lambda some, number: pids.extend(some))
    return pids


def test_a_second_cancel_says_that_the_run_stops_at_once(
    folder: RunFolder, other: Owner, signalled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(folder, other)
    assert stop(folder).endswith("to stop before its ranks start")
    later = time.time() + SAME_CANCEL_S + 1
    monkeypatch.setattr(time, "time", lambda: later)
    assert stop(folder).endswith("again: now it stops at once")
    assert signalled == [other.pid] * 2


def test_two_cancels_at_once_are_one_and_cost_no_checkpoint(
    folder: RunFolder, other: Owner, signalled: list[int]
) -> None:
    claim(folder, other)
    with ThreadPoolExecutor(8) as people:
        said = [*people.map(lambda _: stop(folder), range(8))]
    assert signalled == [other.pid]
    assert sorted(re.sub(".* was", "was", text)[:25] for text in said)[1:] == ["was asked to stop a momen"] * 7
    assert was_cancelled(folder)


def test_a_cancel_does_not_stop_the_run_that_came_in_between(
    folder: RunFolder, other: Owner, signalled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(folder, other)
    before, later = status(folder), replace(other, pid=os.getpid(), started_at=process.started_at(os.getpid()))
    monkeypatch.setattr(statuses, "status", lambda _: before)
    release(folder, other, ended="done")
    claim(folder, later)
    assert "nothing was stopped" in stop(folder)
    assert (signalled, was_cancelled(folder)) == ([], False)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_disk_that_takes_nothing_keeps_no_run_alive(
    folder: RunFolder, other: Owner, signalled: list[int], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(folder, other)

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(owners, "write_json", fail)
    said = stop(folder)
    assert signalled == [other.pid]
    assert f"cannot be written ({os.strerror(number)}): it will be called stopped, not cancelled" in said


def test_the_run_of_another_user_is_not_said_to_stop(
    folder: RunFolder, other: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(folder, other)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "kill", refuse)
    with pytest.raises(InputError, match="belongs to another user"):
        stop(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff" * 9, b"[" * 100_000, b'{"host": 3, "pid": "x"}'])
def test_a_record_that_was_damaged_ends_no_run(folder: RunFolder, content: bytes) -> None:
    claim(folder, this_process())
    folder.owner.write_bytes(content)
    assert not was_cancelled(folder)
    assert not cancelled_since_claim(folder)
    release(folder, this_process(), ended="done")
    with pytest.raises(InputError):
        status(folder)


def test_a_process_of_another_host_cannot_be_cancelled_from_here(folder: RunFolder, other: Owner) -> None:
    claim(folder, replace(other, host="far-away"))
    with pytest.raises(InputError, match="far-away"):
        stop(folder)


def test_a_refused_run_has_replaced_nothing(folder: RunFolder) -> None:
    folder.plan.write_text("the plan")
    before = {path.name for path in folder.path.iterdir()}
    with pytest.raises(InputError, match="refused"), claimed(folder.path, this_process(), name="x") as mine:
        mine.plan.write_text("another")
        mine.config.write_text("new")
        raise InputError("refused")
    assert folder.plan.read_text() == "the plan"
    left = {path.name for path in folder.path.iterdir()} - before
    assert left <= {"logs", "nodes", ".owner.json.lock"}


def test_a_refused_run_leaves_no_new_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError), claimed(tmp_path / "new", this_process(), name="x"):
        raise InputError("refused")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 1}', '{"pid": "x"}'])
def test_an_owner_file_of_any_content_is_refused_with_what_to_do(content: str, folder: RunFolder) -> None:
    folder.owner.write_text(content)
    with pytest.raises(InputError, match="owner"):
        claim(folder, this_process())
