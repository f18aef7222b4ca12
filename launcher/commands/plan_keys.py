"""Which keys of `launcher plan` each of its answers reads: one that the present answer does not read is refused."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.commands.table import COMMANDS, PROGRAM
from launcher.errors import InputError

FROM = "from"
# The key that asks for an answer → what it is about, and the keys that it reads. The first that was typed decides.
ANSWERS = {
    FROM: ("what another tool's file runs", {FROM}),
    "mix": ("a mix of jobs on MIG slices", {"mix"}),
    "plan": ("one existing plan", {"plan", "tokens", "save", "run_dir"}),
    "tokens_per_parameter": ("the largest model in time", {"tokens_per_parameter", "days", "sort", "tokens", "sizes"}),
    "days": ("the fewest GPUs in time", {"days", "tokens", "sort", "sizes"}),  # it refuses `sizes` with its own reason
    "sizes": ("numbers of GPUs", {"sizes", "tokens", "sort"}),
}
SWEPT = ("one plan of each combination (-m)", {"sizes", "tokens", "sort"})
RANKED = ("the layouts of one job", {"top", "sort", "why_not", "tokens", "save", "run_dir"})
ALONE = (FROM, "mix", "plan")  # answers about one thing, without -m


def check_read(overrides: Sequence[str], *, swept: bool) -> None:
    """Raise InputError for keys of the command that this answer would not read."""
    typed = {word.lstrip("+~").partition("=")[0]: word for word in overrides if not word.endswith(("=null", "="))}
    own = {key: word for key, word in typed.items() if key in (FROM, *COMMANDS["plan"].takes)}
    asked = next((key for key in ANSWERS if key in own), None)
    if swept and asked in ALONE:
        raise InputError(f"{own[asked]} is about one thing: leave -m out")
    what, reads = ANSWERS[asked] if asked else SWEPT if swept else RANKED
    unread = [word for key, word in own.items() if key not in {*reads, *PROGRAM}]
    if unread:
        because = f"with {own[asked]} " if asked else ""
        raise InputError(f"{', '.join(unread)} would have no effect: {because}the answer is about {what}: leave it out")


def check_swept(differing: Sequence[str]) -> None:
    """Raise InputError if a key of the command is among those that -m gives several values."""
    own = [key for key in differing if key == "output" or (key in COMMANDS["plan"].takes and key not in PROGRAM)]
    if own:
        raise InputError(
            f"{own[0]} has one value for all rows of a comparison: give one, or run the command once for each"
        )
