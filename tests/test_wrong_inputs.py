"""Wrong input of every kind gives one clear message, the right exit code, and no traceback; nothing is written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.faststart import library_load

DGX = ["cluster=dgx_a100_80g"]
CASES = {
    "unknown cluster": (["plan", "cluster=dgx_a100_80"], 2, ["dgx_a100_80 is not a known cluster", "dgx_a100_80g"]),
    "unknown model": (["run", "model=gtp_tiny"], 2, ["gtp_tiny is not a known model", "gpt_tiny"]),
    "typo in a key": (["plan", "model.hiden=64"], 2, ["model.hiden", "did you mean model.hidden"]),
    "key of a group that has it not": (["plan", "+layout.tpp=2"], 2, ["layout.tpp is not a known key", "layout.tp"]),
    "word for a number": (["plan", "model.hidden=wide"], 2, ["model.hidden", "'wide'", "whole number"]),
    "syntax of an override": (["plan", "layout.tp=[1"], 2, ["layout.tp=[1"]),
    "override without a value": (["plan", "layout.tp"], 2, ["layout.tp"]),
    "tp that does not divide the heads": (
        ["plan", *DGX, "model=gpt_tiny", "layout.tp=8"], 2, ["layout.tp=8", "4 heads", "choose one of 1, 2, 4"]),
    "tp wider than an NVSwitch domain": (
        ["plan", *DGX, "cluster.num_nodes=2", "model=gpt3_1b3", "layout.tp=16"], 2,
        ["layout.tp=16", "NVSwitch domain", "layout.tp_across_domains=true"]),
    "a number for a group": (["plan", "model=7"], 2, ["7 is not a known model", "gpt_tiny"]),
    "a plus before a key that is there": (["plan", "+layout.tp=2"], 2, ["+layout.tp", "without the +"]),
    "two keys that do not exist": (
        ["plan", *DGX, "layout.ttp=2", "cluster.node=3", "trian.dtype=bf16"], 2, ["layout.tp", "train.dtype"]),
    "a number beyond all reason": (
        ["plan", *DGX, "train.global_batch=99999999999999999999999"], 2, ["train.global_batch", "at most 100,000,000"]),
    "memory of a GPU below nothing": (["plan", *DGX, "cluster.node.gpu.memory_mib=0"], 2, ["memory_mib", "above 0"]),
    "a rate of nothing": (["plan", *DGX, "cluster.node.gpu.hbm_gbytes_per_s=0"], 2, ["hbm_gbytes_per_s", "above 0"]),
    "dropout above 1": (["plan", "train.dropout=2"], 2, ["train.dropout", "below 1"]),
    "a word for a flag": (
        ["plan", "stack.recompute_stops_early=maybe"], 2, ["recompute_stops_early", "'maybe'", "true, false or auto"]),
    "sizes that are words": (["plan", *DGX, "sizes=abc"], 2, ["sizes = 'abc'", "sizes=[8,16,32]"]),
    "no sizes": (["plan", *DGX, "sizes="], 2, ["sizes = ''", "sizes=[8,16,32]"]),
    "part of a node": (["plan", *DGX, "sizes=12"], 2, ["sizes=12", "multiple of 8"]),
    "more GPUs than a node without a network": (["plan", "sizes=16"], 2, ["sizes=16", "network", "num_nics"]),
    "tokens that are none": (["plan", "tokens=many"], 2, ["tokens = 'many'", "as 300e9"]),
    "a question about two layouts": (["plan", *DGX, "why_not=tp=2,tp=4"], 2, ["two values, 2 and 4"]),
    "a default layout of words": (["plan", "cluster.default_layout={tp: x}"], 2, ["default_layout", "numbers"]),
    "zero nodes": (["plan", *DGX, "cluster.num_nodes=0"], 2, ["cluster.num_nodes", "at least 1"]),
    "negative batch": (["run", "train.global_batch=-8"], 2, ["train.global_batch", "-8", "at least 1"]),
    "batch that does not divide": (
        ["run", "train.global_batch=15", "layout.tp=1", "layout.pp=1", "layout.dp=8"], 2, ["global_batch=15", "dp"]),
    "degrees that do not fill the machine": (
        ["run", "layout.tp=2", "layout.pp=1", "layout.dp=1", "layout.cp=1"], 2, ["8 GPUs"]),
    "several wrong things at once": (
        ["plan", "model.hidden=0", "cluster.num_nodes=0", "train.global_batch=0"], 2,
        ["model.hidden", "cluster.num_nodes", "train.global_batch"]),
    "a value that is missing": (["plan", "model=gpt"], 2, ["model.hidden", "model.layers", "model.heads"]),
    "nodes without a network": (["plan", "cluster.num_nodes=2"], 2, ["cluster.node.num_nics"]),
    "anything across MIG slices": (
        ["plan", "cluster=a100_mig_1g", "model=gpt_tiny", "layout.dp=2"], 2, ["MIG", "peer-to-peer"]),
    "an engine that cannot": (
        ["run", "train.engine=deepspeed", "layout.tp=1", "layout.pp=2", "layout.dp=4", "layout.zero_stage=3"], 2,
        ["DeepSpeed", "ZeRO-3"]),
    "options out of range": (["run", "train.steps=0", "launch.start=thread"], 2, ["train.steps", "launch.start"]),
    "a script that is not there": (["run", "script=nowhere.py"], 2, ["script=nowhere.py", "not a file"]),
    "a script that is none": (
        ["run", f"script={Path(__file__).parent.parent / 'LICENSE'}"], 2,
        ["LICENSE, line", "cannot run it"]),
    "a key of launch that is misspelt": (
        ["run", "launch.max_restart=3"], 2, ["launch.max_restart is not a known key", "launch.max_restarts"]),
    "logs of a folder that is no run": (["logs", "."], 2, ["no log of a rank", "run folder"]),
    "a token file that is not there": (["run", "train.data=no.tokens"], 2, ["no.tokens", "No such file"]),
    "a token file that is none": (["run", f"train.data={__file__}"], 2, ["not a token file", "worker.data.tokens"]),
    "weights that are not there": (["run", "train.init_from=no/folder"], 2, ["train.init_from=no/folder"]),
    "fp16 in the recipe": (["run", "train.dtype=fp16"], 2, ["loss scaling", "train.dtype=bf16"]),
    "a model that fits nowhere": (
        ["plan", "cluster=fly_a10", "model=gpt3_175b", "train.global_batch=8"], 3, ["gpt3_175b"]),
    "unreadable run folder": (["report", "no/such/run"], 2, ["no/such/run", "run folder"]),
    "a folder that is no run": (["report", "."], 2, ["plan.json"]),
    "a plan saved nowhere": (["plan", "save="], 2, ["cannot write . (it is a folder)", "save=FILE"]),
    "a plan saved as a folder": (["plan", "save=/"], 2, ["cannot write / (it is a folder)", "save=FILE"]),
    "a page as a folder": (["report", *DGX, "model=gpt3_1b3", "file=/"], 2, ["cannot write /", "file=FILE"]),
    "a picture as a folder": (["show", *DGX, "out=/tmp/.svg/.."], 2, ["must be a picture"]),
    "the fastest plan saved nowhere": (["tune", "top=1", "save=."], 2, ["cannot write .", "save=FILE"]),
    "an export that does not exist": (["export", "to=megatorn"], 2, ["megatorn", "did you mean megatron"]),
    "an unknown command": (["plann"], 2, ["plann", "plan"]),
}  # fmt: skip


def run(arguments: list[str]) -> int:
    """The command in this process; argparse leaves by SystemExit."""
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(library_load, "possible", lambda: False)  # it would end this process
            return main(arguments)
    except SystemExit as end:
        return int(end.code or 0)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_wrong_input_is_reported_in_one_message(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, exit_code, words = CASES[case]
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == exit_code
    out, err = capsys.readouterr()
    assert out == ""
    for word in words:
        assert word in err, err
    assert list(tmp_path.iterdir()) == []


def test_a_process_of_its_own_ends_with_the_message_and_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launcher.cli", "plan", "output=json", "layout.tp=3"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["exit_code"] == 2
    assert "layout.tp=3" in done.stderr and "Traceback" not in done.stderr


def test_json_output_answers_an_error_with_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["run", "output=json", "layout.tp=3"]) == 2
    out, err = capsys.readouterr()
    assert "layout.tp=3" in json.loads(out)["error"]["problems"][1] and "layout.tp=3" in err


@pytest.mark.parametrize("command", ["plan", "run", "show"])
def test_a_command_in_a_folder_that_was_removed_says_so(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert run([command]) == 1
    assert "has been removed: change to one that is there" in capsys.readouterr().err
