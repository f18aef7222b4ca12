"""What `launcher status` makes of Slurm's words: arrays, jobs that are forgotten or unknown, refusals."""

from __future__ import annotations

import pytest
from plans import plan

from launcher.errors import InputError
from launcher.slurm import life, submit
from launcher.slurm.command import Answer
from launcher.slurm.settings import SlurmSettings


def says(monkeypatch: pytest.MonkeyPatch, module: object, **answers: Answer) -> None:
    """Have Slurm's commands say this; others fail."""
    monkeypatch.setattr(module, "ask", lambda argv, **_: answers.get(argv[0], Answer(1, "", f"{argv[0]}: error: no")))


def queue(*states: str) -> Answer:
    rows = [{"State": state, "RestartCnt": "0", "NumNodes": "2", "TimeUsed": "1:00"} for state in states]
    return Answer(0, "".join("".join(r.get(n, "").ljust(w) for n, w in life.COLUMNS.items()) + "\n" for r in rows), "")


@pytest.mark.parametrize(
    ("states", "told"),
    [
        (["COMPLETED", "RUNNING", "PENDING"], "RUNNING"),
        (["COMPLETED", "PENDING"], "PENDING"),
        (["COMPLETED", "FAILED"], "FAILED"),
        (["COMPLETED", "COMPLETED"], "COMPLETED"),
    ],
)
def test_an_array_is_what_its_busiest_task_is(monkeypatch: pytest.MonkeyPatch, states: list[str], told: str) -> None:
    says(monkeypatch, life, squeue=queue(*states))
    assert life.status(life.SubmittedRun("17", None)).state == told


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("RESIZING|0:0|3|2026-01-01T00:00:00\nCOMPLETED|0:0|2|2026-01-01T00:01:00\n", ("COMPLETED", 2)),
        ("CANCELLED by 1000|0:15|4|2026-01-01T00:00:00\n", ("CANCELLED", 4)),
        ("COMPLETED|0:0|2|x\nFAILED|1:0|2|x\nCOMPLETED|0:0|2|x\n", ("FAILED", 2)),
    ],
)
def test_accounting_is_asked_for_what_the_queue_has_forgotten(
    monkeypatch: pytest.MonkeyPatch, said: str, told: tuple[str, int]
) -> None:
    says(monkeypatch, life, sacct=Answer(0, said, ""))
    found = life.status(life.SubmittedRun("17", None))
    assert ((found.state, found.num_nodes), found.source) == (told, "sacct")


def test_a_job_that_nobody_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, life)
    for command in (life.status, life.cancel):
        with pytest.raises(InputError, match="Slurm knows no job 4711"):
            command(life.SubmittedRun("4711", None))


def test_a_refusal_is_one_line_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = "sbatch: error: invalid partition specified: nope\nsbatch: error: Invalid partition name specified\n"
    says(monkeypatch, submit, sbatch=Answer(1, "", refused), sinfo=Answer(0, "gpu\nlong\n", ""))
    request = submit.SubmitRequest(("sbatch",), (), submit.batch_script())
    with pytest.raises(InputError) as caught:
        submit.submit(request, run_folder=submit.batch_script())
    assert str(caught.value) == (
        "Slurm refused the job (invalid partition specified: nope; Invalid partition name specified): "
        "set launch.partition to one of gpu, long"
    )


@pytest.mark.parametrize(("partition", "refused"), [(None, False), ("small", True), ("elsewhere", False)])
def test_more_nodes_than_exist_are_refused(
    monkeypatch: pytest.MonkeyPatch, partition: str | None, refused: bool
) -> None:
    says(monkeypatch, submit, sinfo=Answer(0, "small|2\nlarge|4\n", ""))
    settings = SlurmSettings.from_config({"partition": partition})
    if not refused:
        submit.check_size(plan(), settings)
        return
    with pytest.raises(InputError, match=r"needs 4 nodes \(small has 2\)"):
        submit.check_size(plan(), settings)
