"""Command lines in the terms of torchrun, deepspeed and accelerate are answered with the line that works here."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from launcher.commands.first_contact import SYNONYMS, TOP_LEVEL, WITHOUT_PROGRAM, check_words
from launcher.config.overrides import every_key
from launcher.errors import InputError

TYPED = {
    "run train.py": "run script=train.py",
    "run train.py --lr 3 data": "run script=train.py -- --lr 3 data",
    "run script=x.py --lr 3": "run script=x.py -- --lr 3",
    "run script=x.py lr=3": "run script=x.py -- lr=3",
    "run script=x.py lr=3 layout.tp=2 -- --more": "run script=x.py layout.tp=2 -- lr=3 --more",
    "run script=x.py nproc_per_node=2": "run script=x.py launch.nproc_per_node=2",
    "run --nproc-per-node 2 train.py": "run launch.nproc_per_node=2 script=train.py",
    "run --nproc_per_node=2 --standalone train.py a b": "run launch.nproc_per_node=2 script=train.py -- a b",
    "run --nnodes=2 --rdzv-backend=c10d --rdzv-endpoint=n1:29500 train.py": "run launch.nnodes=2 script=train.py",
    "run --num_gpus 4 train.py --deepspeed --deepspeed_config ds.json":
        "run launch.nproc_per_node=4 script=train.py -- --deepspeed --deepspeed_config ds.json",
    "run -m pkg.train --lr 3": "run module=pkg.train -- --lr 3",
    "run nproc_per_node=2": "run launch.nproc_per_node=2",
    "run tp=2": "run layout.tp=2",
    "submit nodes=8": "submit launch.nnodes=8",
    "plan nodes=8 gpus=4": "plan cluster.num_nodes=8 cluster.node.num_gpus=4",
    "plan train.seq_len=2048": "plan model.seq_len=2048",
    "plan plan.risk=0.1 max_memory=40": "plan layout.risk=0.1 layout.max_memory_gib=40",
    "run script=x.py max_memory=40": "run script=x.py -- max_memory=40",
    "plan train.precision=bf16": "plan train.dtype=bf16",
    "run lr=1e-3 batch_size=64": "run train.lr=1e-3 train.global_batch=64",
    "run python -u train.py --lr 3": "run script=train.py -- --lr 3",
    "run python3.11 -m pkg.train": "run module=pkg.train",
    "run torchrun --nproc_per_node=2 train.py": "run launch.nproc_per_node=2 script=train.py",
    "submit accelerate launch --num_processes 8 train.py a": "submit launch.nproc_per_node=8 script=train.py -- a",
    "run bash run.sh --lr 3": "run program=bash -- run.sh --lr 3",
    "run launch.nproc_per_node=2 bash run.sh": "run launch.nproc_per_node=2 program=bash -- run.sh",
    "train.py --lr 3": "run script=train.py -- --lr 3",
    "torchrun --nproc-per-node 2 train.py": "run launch.nproc_per_node=2 script=train.py",
    "run script=x.py 'a b'": "run script=x.py -- 'a b'",
}  # fmt: skip
RIGHT = [
    "run", "run script=x.py -- --lr 3 lr=3", "run layout.tp=2 +train.steps=3", "plan -m cluster=a,b layout.tp=1,2",
    "plan runs/mine", "run --cfg job", "status last", "run module=pkg.train dry_run=true -- -m", "plan tokens=3e9", "",
]  # fmt: skip


@pytest.mark.parametrize("typed", TYPED)
def test_a_line_in_other_terms_is_answered_with_the_one_that_works(typed: str) -> None:
    with pytest.raises(InputError) as error:
        check_words(shlex.split(typed))
    (said,) = error.value.problems
    assert said.endswith(f": launcher {TYPED[typed]}"), said
    assert "\n" not in said
    check_words(shlex.split(TYPED[typed]))  # which needs no answer itself


@pytest.mark.parametrize("typed", RIGHT)
def test_a_right_line_is_left_alone(typed: str) -> None:
    check_words(shlex.split(typed))


def test_a_program_that_is_there_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.sh").touch()
    with pytest.raises(InputError, match=r"launcher run program=\./run\.sh -- x$"):
        check_words(["run", "./run.sh", "x"])


def test_every_key_that_is_named_exists() -> None:
    known = every_key()
    assert [key for key in {*SYNONYMS.values(), *WITHOUT_PROGRAM.values()} if key not in known] == []
    assert [name for name in {*SYNONYMS, *WITHOUT_PROGRAM} if name in known] == []
    assert {name.partition(".")[0] for name in known} == set(TOP_LEVEL)
