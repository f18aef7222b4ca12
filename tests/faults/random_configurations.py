"""Random configurations: each must end in a result or in the project's own error, soon and small.

    python tests/faults/random_configurations.py [--cases 1000] [--seed 0] [--case N]

Each case chooses files of random groups, sets random keys of `launcher keys` to legal, odd and illegal values, and
gives them to a command, or to the Python API, in this process. A case fails with any other error, with a message that
is not fit to be shown, with numbers that JSON does not have, over 2 s of CPU time or over 500 MB. `--case N` repeats
one of a seed and shows what it is.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_origin

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from launcher import Job, estimate  # noqa: E402
from launcher.cli import main as launcher_main  # noqa: E402
from launcher.config.overrides import every_key  # noqa: E402
from launcher.errors import LauncherError  # noqa: E402
from launcher.schema import AUTO, REQUIRED, Entry  # noqa: E402
from tests.faults.mutated_texts import LIMIT_BYTES, LIMIT_S, Late, _late  # noqa: E402

MOST_KEYS = 6
ITS_OWN = frozenset({"run_dir", "dry_run", "output"})  # keys that every case sets itself, where it sets them
GROUPS = {
    name: sorted(path.stem for path in (ROOT / "configs" / name).glob("*.yaml"))
    for name in ("cluster", "model", "stack", "recipe", "launch", "layout", "tracking", "train")
}
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("plan",),
    ("plan", "output=json"),
    ("plan", "output=json", "top=2"),
    ("--cfg",),
    ("submit", "launch=slurm", "dry_run=true", "run_dir={run}"),
    ("run", "dry_run=true", "run_dir={run}"),
    ("export", "to=megatron_lm"),
    ("export", "to=torchrun"),
    ("estimate",),
    ("search",),
)
NUMBERS = (
    *("0", "-1", "1", "2", "3", "7", "2147483648", "9223372036854775808", "-9223372036854775809", "9" * 400),
    *("0.0", "-0.0", "0.5", "1e-320", "1e308", "1e999", "-1e999", "inf", "-inf", "nan", "1e3", "0x10", "1_000", "007"),
)
WORDS = (
    *("''", "' '", "'²'", "'x y'", "'\"'", "\\", "'\\x1b[31m'", '"\x1b]0;x\x07"', '"a\nb"', '"\u2028"', '"\ud800"'),
    *('"\x00"', "null", "true", "auto", "none", "a,b", "'a,b'", "[]", "{}", "[[]]", "{a: 1}", "[1,2,3]", "[null]"),
    *("'{run_dir}'", "'{nope}'", "'%n%j'", "'$(id)'", "'`id`'", "'; id'", "'*'", "'~'", "'-x'", "'--help'"),
    *("../../../../etc", "/", "/dev/null", "/dev/zero", "/proc/self/mem", "/nonexistent/x", ".", "''"),
    *("${model.hidden}", "'${model.hidden}'", "'${oc.env:HOME}'", "'${oc.env:TOKEN}'", "'${nope}'", "'${'", "'${a:b}'"),
    *("x" * 5000, "[" * 300, "{a: " * 100, "[" + "1," * 3000 + "1]", "'" + "é" * 300 + "'", "é", "choice(1,2)"),
    *("range(1,3)", "glob(*)", "shuffle(1,2)", "float(1)", "int(x)"),
)
ODD_OVERRIDES = (
    *(
        "=",
        "=1",
        "nope=1",
        "model.nope=1",
        "model=nope",
        "cluster=../cluster/cpu",
        "+model=gpt",
        "~model",
        "~layout.tp",
    ),
    *(
        "+new.key=1",
        "++model.hidden=64",
        "model.hidden",
        "model.hidden=",
        "model@x=gpt",
        "model@model=gpt",
        "model=[gpt]",
    ),
    *("model={hidden: 64}", "model=null", "layout=null", "launch=null", "hydra.run.dir=/x", "hydra/output=x", "-x"),
    *("layout.tp.x=1", "cluster.node.gpu=nope", "gpu=a100_sxm_80g", "gpu@cluster.node.gpu=h100_sxm", "é=1", "a b=1"),
)


def legal(entry: Entry, rng: random.Random) -> str:
    """A value that the key's own rule allows, as far as its metadata says."""
    rule = entry.key
    choices = [str(word).lower() for word in rule.choices or ()]
    if entry.takes_auto and rng.random() < 0.2:
        return AUTO
    if entry.optional and rng.random() < 0.1:
        return "null"
    if get_origin(entry.kind) is tuple:
        return "[" + ",".join(rng.choice(choices) if choices else str(rng.randint(1, 16)) for _ in range(3)) + "]"
    if choices:
        return rng.choice(choices)
    if entry.kind is bool:
        return rng.choice(("true", "false"))
    if entry.kind in (int, float):
        return _number(entry, rng)
    if rule.names:
        return "{" + rng.choice(rule.names) + f": {rng.randint(1, 500)}}}"
    default = rule.default
    return rule.example or (str(default) if default not in (REQUIRED, None, "") and rng.random() < 0.5 else "word")


def _number(entry: Entry, rng: random.Random) -> str:
    rule = entry.key
    least = next((bound for bound in (rule.minimum, rule.above) if bound is not None), 0)
    most = next((bound for bound in (rule.maximum, rule.below) if bound is not None), max(1, least) * 10**6)
    drawn = least + (most - least) * 10 ** rng.uniform(-6, 0) if rng.random() < 0.7 else rng.choice((least, most))
    return str(int(drawn)) if entry.kind is int else repr(float(drawn))


def value(entry: Entry, rng: random.Random) -> str:
    """A value for a key: legal by its rule, or a number or word that is odd."""
    kind = rng.random()
    return legal(entry, rng) if kind < 0.6 else rng.choice(NUMBERS) if kind < 0.8 else rng.choice(WORDS)


def configuration(rng: random.Random) -> list[str]:
    """Random groups and random keys; half of all cases are legal by their rules, so that they get further."""
    keys, sound = every_key(), rng.random() < 0.5
    words = [f"{group}={rng.choice(files)}" for group, files in GROUPS.items() if rng.random() < 0.4]
    names = rng.sample([name for name in keys if name not in ITS_OWN], rng.randint(0, MOST_KEYS))
    words += [f"{name}={(legal if sound else value)(keys[name], rng)}" for name in names]
    if not sound and rng.random() < 0.3:
        words.append(rng.choice(ODD_OVERRIDES))
    return rng.sample(words, len(words))


@dataclass
class Summary:
    """What came of the cases."""

    ends: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    largest: tuple[int, str] = (0, "")

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {end}" for end, count in self.ends.most_common())
        first = (
            f"{self.ends.total() + len(self.failures)} random configurations: {ends}; {len(self.failures)} failed; "
            f"slowest {self.slowest[0]:.2f} s of CPU ({self.slowest[1]}), growth at most "
            f"{self.largest[0] / 1e6:.0f} MB ({self.largest[1]})"
        )
        return "\n".join([first, *self.failures])


class Unfit(Exception):
    """A result or a message that is not fit for who reads it."""


def refuse_constant(text: str) -> float:
    raise Unfit(f"JSON has no {text}")


def check_message(text: str) -> None:
    """What is shown on a terminal: short, without control characters, without a traceback."""
    if not text.strip() or len(text) > 20_000:
        raise Unfit(f"a message of {len(text)} characters: {text[:200]!r}")
    if "Traceback" in text or any(ord(sign) < 32 and sign not in "\n\t" for sign in text):
        raise Unfit(f"its message: {text[-300:]!r}")


def by_command(command: Sequence[str], words: Sequence[str], folder: Path) -> str:
    """The command line, in this process; how it ended."""
    argv = [word.replace("{run}", str(folder / "run")) for word in command]
    argv = ["plan", "--cfg", "job", *words] if argv == ["--cfg"] else [argv[0], *words, *argv[1:]]
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = launcher_main(argv)
        except SystemExit as end:
            code = int(end.code or 0)
    if code:
        check_message(err.getvalue() + out.getvalue())
    elif "output=json" in argv:
        json.loads(out.getvalue(), parse_constant=refuse_constant)
    if code not in (0, 1, 2, 3):
        raise Unfit(f"exit code {code}: {err.getvalue()[-300:]!r}")
    return f"ended with {code}"


def by_api(call: Callable[[Sequence[str]], object], words: Sequence[str]) -> str:
    try:
        call(words)
    except LauncherError as error:
        check_message(str(error))
        return type(error).__name__
    return "returned"


API: Mapping[str, Callable[[Sequence[str]], object]] = {
    "estimate": estimate,
    "search": lambda words: Job.from_overrides(words).search(top=1),
}


def case(number: int, seed: int) -> tuple[tuple[str, ...], list[str]]:
    """The command and the overrides of one case."""
    rng = random.Random(f"{seed}:{number}")
    return rng.choice(COMMANDS), configuration(rng)


def run_case(number: int, seed: int, folder: Path, summary: Summary) -> None:
    command, words = case(number, seed)
    name = f"{seed}:{number} {' '.join(command)}"
    began, before = time.process_time(), _peak_bytes()
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        call = API.get(command[0])
        summary.ends[by_api(call, words) if call else by_command(command, words, folder)] += 1
    except Late:
        summary.failures.append(f"{name}: over {LIMIT_S:g} s")
    except MemoryError:
        summary.failures.append(f"{name}: over {LIMIT_BYTES // 10**6} MB")
    except BaseException as error:
        where = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[-3:]]
        summary.failures.append(f"{name}: {type(error).__name__}: {str(error)[:300]!r} ({' '.join(where)})")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    summary.slowest = max(summary.slowest, (time.process_time() - began, name))
    summary.largest = max(summary.largest, (_peak_bytes() - before, name))


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _warm_up(folder: Path) -> None:
    """Imports and the first composition cost what a command costs once."""
    for command in COMMANDS:
        call = API.get(command[0])
        _ = by_api(call, []) if call else by_command(command, [], folder)


def run(numbers: Sequence[int], *, seed: int) -> Summary:
    """These cases, in this process; each in a working folder of its own."""
    summary = Summary()
    with tempfile.TemporaryDirectory(prefix="random-configurations-") as name:
        os.chdir(name)
        os.environ["XDG_CACHE_HOME"] = os.environ["HOME"] = name
        _warm_up(Path(name) / "warm-up")
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT_BYTES, resource.RLIM_INFINITY))
        signal.signal(signal.SIGPROF, _late)
        for number in numbers:
            folder = Path(name) / str(number)
            folder.mkdir()
            os.chdir(folder)
            run_case(number, seed, folder, summary)
        os.chdir("/")
    return summary


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="this one of the seed's alone")
    given = parser.parse_args()
    if given.case is not None:
        print(*(repr(word) for part in case(given.case, given.seed) for word in part))
    summary = run(range(given.cases) if given.case is None else [given.case], seed=given.seed)
    print(summary)
    return int(bool(summary.failures))


if __name__ == "__main__":
    sys.exit(main())
