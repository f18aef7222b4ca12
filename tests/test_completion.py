"""Completion offers commands, keys and the entries of a group, and its script runs in a real bash."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from launcher.commands.completion import BASH, candidates


@pytest.mark.parametrize(
    ("before", "current", "offered"),
    [
        ([], "pl", "plan"),
        (["plan"], "cluster=dgx_a100_8", "cluster=dgx_a100_80g"),
        (["plan"], "layout.virt", "layout.virtual_stages="),
        (["run"], "recip", "recipe="),
    ],
)
def test_the_word_that_fits_is_offered(before: list[str], current: str, offered: str) -> None:
    assert offered in candidates(before, current)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this machine")
def test_bash_completes_an_entry_after_the_equals_sign() -> None:
    script = (
        'launcher() { printf "cluster=dgx_a100_80g\\ncluster=dgx_a100_40g\\n"; }\n'
        f"{BASH}\n"
        'COMP_LINE="launcher plan cluster=dgx"; COMP_POINT=${#COMP_LINE}; _launcher; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=30)
    assert done.stdout.split() == ["dgx_a100_80g", "dgx_a100_40g"], done.stderr
