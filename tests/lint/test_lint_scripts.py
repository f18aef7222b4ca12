"""Batch scripts as people write them: what is found in each, and on which line."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.lint import lint

SCRIPTS = Path(__file__).parent / "scripts"

EXPECTED = {
    "accelerate.sbatch": [
        (9, "no-signal"), (15, "localhost-fallback"), (18, "expanded-too-early"), (34, "cpus-not-inherited"),
        (34, "ephemeral-port"), (34, "nnodes-mismatch"), (34, "no-kill-on-bad-exit"),
    ],
    "apptainer.sbatch": [(18, "no-kill-on-bad-exit")],
    "bash_c_quotes.sh": [
        (3, "late-directive"), (4, "late-directive"), (5, "late-directive"), (6, "nccl-on-loopback"),
        (7, "nccl-transport-off"), (9, "own-name-as-master"), (10, "random-port"), (11, "devices-overridden"),
    ],
    "bloom_style.slurm": [
        (10, "no-signal"), (61, "debugging-left-on"), (66, "cpus-not-inherited"), (66, "exit-code-lost"),
        (66, "no-kill-on-bad-exit"), (66, "node-rank-with-c10d"), (66, "one-thread"),
    ],
    "clean.sbatch": [],
    "deepspeed_hostfile.sh": [
        (6, "no-signal"), (7, "log-folder-too-late"), (8, "requeue-truncates-log"), (11, "compressed-node-list"),
        (12, "random-port"), (14, "secret-in-clear"), (20, "launcher-times-tasks"), (20, "no-kill-on-bad-exit"),
        (20, "one-core-by-default"),
    ],
    "lightning.sh": [],
    "megatron_pyxis.sub": [(2, "no-signal"), (6, "secret-in-clear"), (13, "tp-over-node"), (21, "exit-code-forgotten"),
        (21, "no-kill-on-bad-exit"),
    ],
    "no_srun.sh": [
        (1, "no-shebang"), (1, "variable-in-directive"), (4, "gpu-bind"), (7, "every-node-is-node-0"),
        (7, "launcher-on-first-node"),
        (7, "loopback-master"), (7, "more-ranks-than-gpus"), (7, "tp-over-node"), (8, "export-none"),
    ],
    "single_node.sh": [],
    "torch_tutorial.sh": [
        (6, "gpus-per-task"), (12, "own-addresses-as-master"), (17, "cpus-not-inherited"), (17, "no-kill-on-bad-exit"),
        (17, "one-thread"),
    ],
    "trap_requeue.sbatch": [
        (1, "requeue-truncates-log"), (7, "broken-directive"), (15, "loopback-master"), (17, "constant-rdzv-id"),
        (17, "expanded-too-early"), (17, "one-core-by-default"), (17, "trap-behind-foreground"),
    ],
}  # fmt: skip


def test_our_own_batch_script_has_no_trap() -> None:
    ours = Path(__file__).parents[2] / "slurm" / "train.sbatch"
    assert lint(ours.read_text()) == []


def test_every_script_has_an_expectation() -> None:
    assert {path.name for path in SCRIPTS.iterdir()} == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_the_traps_of_a_real_script(name: str) -> None:
    findings = lint((SCRIPTS / name).read_text())
    assert [(finding.line, finding.rule) for finding in findings] == EXPECTED[name]
