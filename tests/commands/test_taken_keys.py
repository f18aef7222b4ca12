"""A key that a command, or one of its answers, would not read is refused: nothing that was typed is without effect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher import Job
from launcher.cli import main
from launcher.commands.plan_keys import ANSWERS, FROM
from launcher.commands.table import COMMANDS
from launcher.config.settings import Configuration
from launcher.errors import InputError
from launcher.schema import entries

OWN = {key for entry in COMMANDS.values() for key in entry.takes}
COMPOSING = [name for name, entry in COMMANDS.items() if entry.groups]
JOB = ["cluster=dgx_a100_80g", "model=gpt3_1b3", "train.global_batch=64"]
TYPED = {
    "top": "top=3", "sort": "sort=memory", "why_not": "why_not=tp=8", "sizes": "sizes=8,16", "tokens": "tokens=1e9",
    "mix": "mix=gpt3_125m:2", "days": "days=9", "tokens_per_parameter": "tokens_per_parameter=20",
    "run_dir": "run_dir=r", "save": "save=new.json", "plan": "plan=best.json", FROM: "from=megatron.sh",
    "dry_run": "dry_run=true", "again": "again=last", "to": "to=torchtitan", "script": "script=a.py",
    "module": "module=a", "program": "program=a",
}  # fmt: skip


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one message of a command line that is wrong."""
    assert main([*words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


def test_every_key_without_a_group_is_read_by_a_command() -> None:
    every = {entry.name for entry in entries(Configuration) if not entry.is_group}
    assert every - {"output", "config_dir"} == OWN


@pytest.mark.parametrize("command", COMPOSING)
def test_a_key_of_other_commands_is_refused_by_name(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    entry = COMMANDS[command]
    taken = {*entry.takes, *(word.partition("=")[0] for word in entry.options)}
    foreign = [TYPED[key] for key in sorted(OWN - taken)]
    said = refusal(capsys, command, *foreign)
    assert [word for word in foreign if f"{word}: `launcher {command}` does not read" not in said] == []


def test_a_cluster_is_shown_for_no_job_and_a_plan_on_its_own_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "`launcher show` does not read layout" in refusal(capsys, "show", "cluster=dgx_a100_80g", "layout.tp=8")
    file = tmp_path / "best.json"
    assert main(["plan", *JOB, f"save={file}"]) == 0
    capsys.readouterr()
    assert "differs from the plan in" in refusal(capsys, "show", f"plan={file}", "cluster=dgx_a100_40g")
    assert main(["show", f"plan={file}", "cluster=dgx_a100_80g"]) == 0


@pytest.mark.parametrize("asked", [None, "-m", *ANSWERS])
def test_a_key_that_an_answer_does_not_read_is_refused(
    asked: str | None, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [asked] if asked == "-m" else [TYPED[asked]] if asked else ["tokens=1e9"]
    words += ["tokens=1e9"] if asked == "days" else ["days=9"] if asked == "tokens_per_parameter" else []
    unread = {None: (), "plan": ("top", "sort", "why_not"), FROM: ("top", "save", "tokens")}.get(
        asked, ("top", "why_not", "save", "run_dir")
    )
    for key in unread:
        said = refusal(capsys, "plan", *JOB, *words, TYPED[key])
        assert f"{TYPED[key]} would have no effect" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["tokens=1e9,2e9", "tokens=choice(1e9,2e9)", "sort=time,cost", "output=text,json"])
def test_a_comparison_has_one_value_of_a_key_of_the_command(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"{key.partition('=')[0]} has one value for all rows" in refusal(capsys, "plan", "-m", *JOB, key)


def test_a_row_of_a_comparison_is_the_plan_of_its_job_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """What one software cannot run is refused in its row alone, whatever is first; the Python API compares alike."""
    able = {"launcher": False, "torchtitan": True}
    jobs = {name: Job.from_overrides([*JOB, "layout.recompute=op", f"stack={name}"]) for name in able}
    with pytest.raises(InputError, match="recompute every layer"):
        jobs["launcher"].search()
    assert jobs["torchtitan"].search(top=1).best
    for names in (list(able), list(able)[::-1]):
        assert main(["plan", "-m", *JOB, "layout.recompute=op", f"stack={','.join(names)}", "output=json"]) == 0
        rows = json.loads(capsys.readouterr().out)["rows"]
        assert [row["plan"] is not None for row in rows] == [able[name] for name in names]
        compared = jobs[names[0]].compare(jobs[names[1]]).rows
        assert [row.best is not None for row in compared] == [able[name] for name in names]


def test_a_plan_file_says_what_its_tokens_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "best.json"
    assert main(["plan", *JOB, "layout.tp=2", "tokens=3e9", "output=json", f"save={file}"]) == 0
    planned = json.loads(capsys.readouterr().out)["training"]
    for words, factor in (([], 1), (["tokens=6e9"], 2)):
        assert main(["plan", f"plan={file}", *words, "output=json"]) == 0
        assert json.loads(capsys.readouterr().out)["training"]["days"] == pytest.approx(factor * planned["days"])
    assert main(["plan", f"plan={file}"]) == 0
    assert "3.0B training tokens take" in capsys.readouterr().out


def test_a_deadline_that_one_gpu_misses_does_not_say_that_there_is_no_plan(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cluster=fly_a100_80gb", "model=gpt3_1b3", "train.global_batch=64", "tokens=10e9"]
    assert main(["plan", *words, "days=0.9", "output=json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert "not in 0.9 days" in row["note"] and row["days"] > 0.9
