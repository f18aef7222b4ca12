"""Texts from outside, damaged at random: each must end in a result or in the project's own error, soon and small.

    python tests/faults/mutated_texts.py [--cases 20000] [--seed 0] [--more FOLDER] [--only TARGET]

Every reader of a text that is not ours gets texts that the tests hold, and those of FOLDER (as a collection of outputs
of real machines, distinguished by the prefixes of their names), each changed one to four times. A case fails with any
other error, over 2 s of CPU time or over 500 MB. It is repeated by its target and seed.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from launcher.errors import LauncherError  # noqa: E402
from tests.faults import text_targets  # noqa: E402

LIMIT_S = 2.0
LIMIT_BYTES = 500 * 10**6
MOST_CHANGES = 4
# What readers stumble over: digits that int does not know, numbers without end, line breaks of other systems, nesting.
PIECES = (
    *("²", "٣", "½", "9" * 5000, "-1", "--1", "0x", "1e999", "nan", "0123", "99999999999999999999", ""),
    *("\x00", "\x1b[31m", "\x85", "\u2028", "\r\n", "\ud800", "\ufeff", "\x7f", "’", "𝟙"),
    *("[" * 2000, "]" * 2000, "(" * 2000, "{" * 2000, "<a>" * 2000, "</a>" * 2000, '"', "'", "`", "$(", "${", "\\"),
    *("n[1-60000]-[1-60000]", "n[1-65536]," * 3, "[0-9][0-9][0-9][0-9][0-9]", "n[9999999999999-1]", ",", "=", "#", ":"),
    *("x" * 200_000, " " * 50_000, "\n" * 20_000, "\t", "GPU0", "NV" + "9" * 400, "\\\n", "<!DOCTYPE x>", "%s%n{0}"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, [], {}, "", "²", "\x00", -1, 0, 0.0, 1e308, float("nan"), float("inf"), 2**63, 10**400),
    *("x" * 100_000, [[]], {"a": {"b": {}}}, [0] * 10_000, "1", -(10**30)),
)


@dataclass
class Summary:
    """What came of the cases."""

    results: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    largest: tuple[int, str] = (0, "")

    def __str__(self) -> str:
        total = self.results.total() + self.refusals.total() + len(self.failures)
        lines = [
            f"{total} mutated texts: {self.results.total()} read, {self.refusals.total()} refused, "
            f"{len(self.failures)} failed; slowest {self.slowest[0]:.2f} s of CPU ({self.slowest[1]}), growth at most "
            f"{self.largest[0] / 1e6:.0f} MB ({self.largest[1]})"
        ]
        names = sorted({*self.results, *self.refusals})
        lines += [f"  {name:<22} read {self.results[name]:>6}  refused {self.refusals[name]:>6}" for name in names]
        return "\n".join([*lines, *self.failures])


def mutated(text: str, rng: random.Random) -> str:
    """The text with one to MOST_CHANGES changes."""
    for _ in range(rng.randint(1, MOST_CHANGES)):
        text = rng.choice(CHANGES)(text, rng)
    return text


def _spot(text: str, rng: random.Random) -> tuple[int, int]:
    """A place in the text, of a few characters more often than of many."""
    start = rng.randint(0, len(text))
    return start, min(len(text), start + rng.choice((0, 1, 1, 3, 20, 200, len(text))))


def _insert(text: str, rng: random.Random) -> str:
    at = rng.randint(0, len(text))
    return text[:at] + rng.choice(PIECES) + text[at:]


def _replace(text: str, rng: random.Random) -> str:
    start, end = _spot(text, rng)
    return text[:start] + rng.choice(PIECES) + text[end:]


def _cut(text: str, rng: random.Random) -> str:
    start, end = _spot(text, rng)
    return text[:start] + text[end:]


def _repeat(text: str, rng: random.Random) -> str:
    start, end = _spot(text, rng)
    times = min(rng.choice((2, 10, 3000)), 1 + 200_000 // max(1, end - start))
    return text[:start] + text[start:end] * times + text[end:]


def _number(text: str, rng: random.Random) -> str:
    """Another number in the place of one."""
    spans = [(at, at + 1) for at, character in enumerate(text[:20_000]) if character.isdigit()]
    if not spans:
        return _insert(text, rng)
    start, end = rng.choice(spans)
    while end < len(text) and text[end].isdigit():
        end += 1
    return text[:start] + rng.choice(PIECES[:11]) + text[end:]


def _lines(text: str, rng: random.Random) -> str:
    lines = text.split("\n")
    rng.shuffle(lines)
    return "\n".join(lines[: rng.randint(0, len(lines))])


def _flip(text: str, rng: random.Random) -> str:
    if not text:
        return "\x00"
    at = rng.randrange(len(text))
    return text[:at] + chr(rng.choice((0, 9, 34, 39, 91, 93, 123, 125, 127, 0x131, 0xFFFD, 0x1F600))) + text[at + 1 :]


CHANGES: tuple[Callable[[str, random.Random], str], ...] = (
    *(_insert, _replace, _replace, _cut, _repeat, _number, _number, _lines, _flip),
)


def mutated_json(text: str, rng: random.Random) -> str:
    """A JSON document, or JSON lines, with one to MOST_CHANGES values replaced; now and then its text is damaged."""
    if rng.random() < 0.3:
        return mutated(text, rng)
    lines = [text] if text.lstrip().startswith("{\n") else text.splitlines()
    index = rng.randrange(len(lines))
    document = json.loads(lines[index])
    for _ in range(rng.randint(1, MOST_CHANGES)):
        _change(document, rng)
    lines[index] = json.dumps(document)
    return "\n".join(lines) + "\n"


def _change(node: Any, rng: random.Random) -> None:
    keys = list(node) if isinstance(node, dict) else list(range(len(node)))
    if not keys:
        return
    key = rng.choice(keys)
    inner = node[key]
    if isinstance(inner, dict | list) and inner and rng.random() < 0.7:
        _change(inner, rng)
    elif rng.random() < 0.2:
        del node[key]
    elif isinstance(node, dict) and rng.random() < 0.1:
        node["²"] = deepcopy(rng.choice(VALUES))
    else:
        node[key] = deepcopy(rng.choice(VALUES))


class Late(Exception):
    """A case has used up its CPU time."""


def _late(number: int, frame: FrameType | None) -> None:
    raise Late


def run_case(target: text_targets.Target, seed: int, folder: Path, summary: Summary) -> None:
    """One text for one reader."""
    rng = random.Random(f"{target.name}:{seed}")
    original = rng.choice(target.texts)
    text = (mutated_json if target.is_json else mutated)(original, rng)
    began, before = time.process_time(), peak_bytes()
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        target.read(text, folder)
        summary.results[target.name] += 1
    except LauncherError as error:
        summary.refusals[target.name] += 1
        if not str(error).strip() or len(str(error)) > 5000 or "\x1b" in str(error) or "\x00" in str(error):
            summary.failures.append(f"{target.name}:{seed}: its message is not fit to be shown: {str(error)[:200]!r}")
    except Late:
        summary.failures.append(f"{target.name}:{seed}: over {LIMIT_S:g} s")
    except MemoryError:
        summary.failures.append(f"{target.name}:{seed}: over {LIMIT_BYTES // 10**6} MB")
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        found = f"{type(error).__name__}: {str(error)[:100]!r} ({Path(where.filename).name}:{where.lineno})"
        summary.failures.append(f"{target.name}:{seed}: {found}")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    took = time.process_time() - began
    summary.slowest = max(summary.slowest, (took, f"{target.name}:{seed}"))
    summary.largest = max(summary.largest, (peak_bytes() - before, f"{target.name}:{seed}"))


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cases(targets: Mapping[str, text_targets.Target], number: int, seed: int) -> Iterator[tuple[str, int]]:
    """Target and seed of each case: every target gets as many."""
    names = sorted(targets)
    for index in range(number):
        yield names[index % len(names)], seed * 10**6 + index // len(names)


def run(number: int, *, seed: int, more: Path | None = None, only: str | None = None) -> Summary:
    """Run this number of cases in this process."""
    targets = {target.name: target for target in text_targets.targets(more) if only in (None, target.name)}
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT_BYTES, resource.RLIM_INFINITY))
    signal.signal(signal.SIGPROF, _late)
    summary = Summary()
    with tempfile.TemporaryDirectory(prefix="mutated-texts-") as folder:
        for name, case in cases(targets, number, seed):
            run_case(targets[name], case, Path(folder), summary)
    return summary


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--more", type=Path, help="a folder of outputs of real machines")
    parser.add_argument("--only", help="one reader alone")
    given = parser.parse_args()
    summary = run(given.cases, seed=given.seed, more=given.more, only=given.only)
    print(summary)
    return int(bool(summary.failures))


if __name__ == "__main__":
    sys.exit(main())
