"""A small sample of what tests/faults/attack.py and tests/faults/seeded.py do at length."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from attack import attack
from seeded import run

pytestmark = pytest.mark.slow


def test_attackers_of_another_user_change_neither_losses_nor_end(tmp_path: Path) -> None:
    found = attack(tmp_path, seconds=5.0, seed=1, steps=20)
    assert [attacker["let_in"] for attacker in found.attackers] == [[]] * len(found.attackers)
    assert sum(attacker["attacks"] for attacker in found.attackers) > 50
    assert found.harmless, json.dumps(asdict(found))[-4000:]


def test_a_sample_of_faults_in_a_long_training_is_recovered_from_without_a_step_lost() -> None:
    summary = run(3, seed=57, only="long")
    assert summary.passed, (summary.to_dict(), summary.faults)


def test_a_sample_of_faults_in_short_trainings_is_recovered_from_without_a_step_lost() -> None:
    summary = run(2, seed=3, only="short")
    assert summary.passed, (summary.to_dict(), summary.faults)
