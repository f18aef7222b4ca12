"""A small sample of what tests/faults/attack.py and tests/faults/seeded.py do at length."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from attack import attack
from seeded import differences, run

pytestmark = pytest.mark.slow


def test_attackers_of_another_user_change_neither_losses_nor_end(tmp_path: Path) -> None:
    found = attack(tmp_path, seconds=5.0, seed=1, steps=60)
    assert [attacker["let_in"] for attacker in found.attackers] == [[]] * len(found.attackers)
    assert sum(attacker["attacks"] for attacker in found.attackers) > 50
    assert found.harmless, json.dumps(asdict(found))[-4000:]


def test_a_sample_of_faults_in_a_long_training_is_recovered_from_without_a_step_lost() -> None:
    summary = run(3, seed=57, only="long")
    assert summary.problems() == []
    assert len(summary.faults) == 3


def test_a_sample_of_faults_in_short_trainings_is_recovered_from_without_a_step_lost() -> None:
    summary = run(2, seed=3, only="short")
    assert summary.problems() == []
    assert len(summary.faults) == 2


def test_differences_are_said_in_short() -> None:
    alone = [(step, step / 8) for step in range(1, 73)]
    struck = [(step, loss + (0.25 if step > 40 else 0)) for step, loss in alone if step not in (5, 6, 9)]
    said = (
        "missing 5-6, 9; twice 41; 33 of 70 losses differ, by up to 2.5e-01, the first at step 41: 5.375, alone 5.125"
    )
    assert differences([*struck, struck[37]], alone, ["kill rank"]) == said
    assert differences(struck[:30], alone[:33], ["fill disk"]) == ""
