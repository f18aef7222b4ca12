"""Seeded faults over start, training, save and shutdown of real trainings: each must come back, and lose nothing.

    python tests/faults/seeded.py [--faults 100] [--seed 0]

Two kinds of jobs train the gpt recipe with checkpoints. A long one runs over two agents on loopback addresses and is
struck again and again; an agent that ended is started again, as a batch system would. Short ones (`launcher run`) are
struck once each, at their start, in a save or at their end, and then started again by the same command.

A fault counts as recovered when the training goes on behind it (long) or ends as it should (short), and when in the end
every step has, once, the loss of a training that was left alone; a full disk may cost lines. Steps lost: those between
the newest checkpoint that was committed at the fault and the one that the training went on from. The summary is the
last line, as JSON; the exit code is 1 unless every fault was recovered, no step was lost and no process was left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from fault_training import HOSTS, SMALL, Nodes, losses, token_file, training
from patience import Patience, slowness

from launcher import process
from launcher.run.checkpoints import newest_good
from launcher.run.folder import RunFolder

# In the first environment of every process of a job: what has it at the end was left behind. A variable of Python's
# gets a job a preloaded interpreter of its own (tests/preloaded.py), whose forks show that of their interpreter.
MARK = "PYTHON_FAULTS_MARK"
BACK_S = 480.0
STEPS_OF_SHORT, EVERY = 12, 3
LONG_SHARE = 0.7
STEPS_PER_FAULT, MOST_STEPS = 24, 120  # of a long training
ATTACKER = Path(__file__).with_name("attacker.py")


@dataclass
class Fault:
    """One fault and what became of it."""

    kind: str
    phase: str
    recovered: bool = False
    lost_steps: int = 0
    seconds: float = 0.0
    note: str = ""


@dataclass
class Marked:
    """All processes of one job, known by a mark in their environment."""

    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def variables(self) -> dict[str, str]:
        return {**os.environ, MARK: self.mark}

    def left(self, *, within_s: float = 15.0) -> list[str]:
        """Return what is still running after this time: process ids with command lines."""
        patience = Patience(within_s)
        while (found := self._left()) and not patience.over():
            time.sleep(0.1)
        return [f"{pid} {_command_line(pid)}" for pid in found]

    def _left(self) -> list[int]:
        """Without what this process has started itself: a command that it waits for, a preloaded interpreter."""
        own = Path("/proc/self/task", str(os.getpid()), "children").read_text().split()
        return [pid for pid in self.alive() if str(pid) not in own]

    def alive(self) -> list[int]:
        wanted = f"{MARK}={self.mark}".encode()
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [pid for pid in pids if process.state(pid) not in (None, "Z") and wanted in _environment(pid)]

    def kill(self) -> None:
        for number in (signal.SIGCONT, signal.SIGKILL):
            process.signal_all(self.alive(), number)


def _environment(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes()
    return b""


def _command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
    return ""


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """What `Nodes.start` passes on."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def resumed_after(log: str) -> list[int]:
    """The step that each start of rank 0 in its log went on from; one that ended before it came to a step has none."""
    found = []
    for start in log.split("=== launcher: rank 0 ")[1:]:
        after = re.search(r"going on after step (\d+)", start)
        if after or re.search(r"^step \d+/", start, re.MULTILINE):
            found.append(int(after[1]) if after else 0)
    return found


def differences(found: list[tuple[int, float]], expected: list[tuple[int, float]], kinds: list[str]) -> str:
    """In words, how the lines of a run differ from those of one left alone; a full disk may cost lines, not a value."""
    steps, wanted = [step for step, _ in found], dict(expected)
    missing = [] if any("disk" in kind for kind in kinds) else sorted({*wanted} - {*steps})
    twice = sorted(step for step, count in Counter(steps).items() if count > 1)
    other = [(step, loss) for step, loss in found if wanted.get(step) != loss]
    said = [f"{what} {in_short(which)}" for what, which in (("missing", missing), ("twice", twice)) if which]
    if other:
        step, loss = other[0]
        most = max(abs(loss - wanted.get(step, 0.0)) for step, loss in other)
        said.append(
            f"{len(other)} of {len(found)} losses differ, by up to {most:.1e}, the first at step {step}: "
            f"{loss!r}, alone {wanted.get(step)!r}"
        )
    return "; ".join(said)


def in_short(steps: list[int]) -> str:
    """Numbers with runs of them as first-last."""
    runs: list[list[int]] = []
    for step in steps:
        if runs and step == runs[-1][1] + 1:
            runs[-1][1] = step
        else:
            runs.append([step, step])
    return ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)


def steps_done(folder: RunFolder) -> int:
    """Return the newest recorded step."""
    return max((step for step, _ in losses(folder)), default=0)


class LongJob:
    """A training over two agents that is struck many times."""

    def __init__(self, folder: Path, data: Path, *, steps: int, chance: random.Random) -> None:
        self.chance, self.marked = chance, Marked()
        launch = {
            "max_restarts": 3,
            "refill_steps": 1,
            "hang_timeout_s": 12.0 * slowness(),
            "rejoin_timeout_s": 180.0 * slowness(),  # a machine with much else to do imports torch for a minute
            "grace_s": 20.0 * slowness(),
        }
        self.steps = steps
        self.job: Nodes = training(
            folder, data, f"train.steps={self.steps}", f"train.checkpoint_every={EVERY}", **launch
        )
        self.folder = RunFolder(self.job.run_dir)

    def start(self, name: str) -> None:
        with environment(self.marked.variables):
            self.job.start(name)

    def supervise(self) -> None:
        """Start agents that ended before the training did."""
        for name, agent in self.job.agents.items():
            if agent.poll() not in (None, 0):
                self.start(name)

    def wait_for(self, condition: Callable[[], bool], *, timeout_s: float = BACK_S) -> bool:
        patience = Patience(timeout_s)
        while not condition():
            self.supervise()
            if patience.over():
                return False
            time.sleep(0.05)
        return True

    def signal_rank(self, number: int, name: str = "") -> None:
        """Signal a rank, of a node drawn by chance; wait for one where the last fault has just ended them all."""
        name = name or self.chance.choice(HOSTS)
        self.wait_for(lambda: self._signalled(number, name), timeout_s=60)

    def _signalled(self, number: int, name: str) -> bool:
        with suppress(IndexError, ProcessLookupError):
            os.kill(self.chance.choice(self.job.ranks_of(name)), number)
            return True
        return False

    def _struck(self, blow: Callable[[LongJob], None]) -> bool:
        """Whether the victim was there: the fault before may have just ended it."""
        with suppress(IndexError, ProcessLookupError):
            blow(self)
            return True
        return False

    def strike(self, kind: str) -> Fault:
        """One fault, and the wait for two steps behind it."""
        phase, blow = LONG_KINDS[kind]
        fault, began = Fault(kind, phase), time.monotonic()
        if phase == "save" and not self.wait_for(lambda: any(self.folder.checkpoints.glob(".saving-*")), timeout_s=60):
            fault.note = "no save was seen"
        committed, step = newest_good(self.folder.checkpoints).step or 0, steps_done(self.folder)
        if blow is damage_checkpoint:
            committed = max(0, committed - EVERY)  # it takes the newest one away
        starts = len(resumed_after(self.job.log(0)))
        if not self.wait_for(lambda: self._struck(blow), timeout_s=60):
            fault.note = "its victim was never there"
            return fault
        fault.recovered = self.wait_for(lambda: steps_done(self.folder) >= min(step + 2, self.steps))
        newer = resumed_after(self.job.log(0))[starts:]
        fault.lost_steps = max((committed - after for after in newer), default=0) if newer else 0
        fault.lost_steps = max(0, fault.lost_steps)
        fault.seconds = round(time.monotonic() - began, 2)
        return fault

    def finish(self) -> dict[str, int]:
        """Wait for the training's end; exit codes of the agents."""
        self.wait_for(lambda: all(agent.poll() == 0 for agent in self.job.agents.values()), timeout_s=600)
        return {name: agent.poll() if agent.poll() is not None else -1 for name, agent in self.job.agents.items()}


def kill_rank(job: LongJob) -> None:
    job.signal_rank(signal.SIGKILL)


def terminate_rank(job: LongJob) -> None:
    job.signal_rank(signal.SIGTERM)


def stop_rank(job: LongJob) -> None:
    job.signal_rank(signal.SIGSTOP)


def kill_agent(job: LongJob, name: str = HOSTS[1]) -> None:
    job.job.agents[name].kill()
    job.job.agents[name].wait()
    time.sleep(job.chance.uniform(0, 0.5))


def kill_coordinator(job: LongJob) -> None:
    kill_agent(job, HOSTS[0])


def kill_both_agents(job: LongJob) -> None:
    for name in job.chance.sample(HOSTS, 2):
        kill_agent(job, name)


def kill_during_restart(job: LongJob) -> None:
    """A second fault while the job comes back from the first."""
    kill_rank(job)
    time.sleep(job.chance.uniform(0.1, 1.5))
    kill_rank(job)


def kill_agent_during_restart(job: LongJob) -> None:
    kill_rank(job)
    time.sleep(job.chance.uniform(0.05, 1.0))
    kill_agent(job, job.chance.choice(HOSTS))


def kill_server(job: LongJob) -> None:
    """The process that ranks are forked from."""
    os.kill(process.descendants(job.job.agents[job.chance.choice(HOSTS)].pid)[0], signal.SIGKILL)


def stop_server(job: LongJob) -> None:
    os.kill(process.descendants(job.job.agents[job.chance.choice(HOSTS)].pid)[0], signal.SIGSTOP)


def stop_server_and_kill_rank(job: LongJob) -> None:
    """Ranks have to be started while the server is stopped."""
    name = job.chance.choice(HOSTS)
    os.kill(process.descendants(job.job.agents[name].pid)[0], signal.SIGSTOP)
    job.signal_rank(signal.SIGKILL, name)


def pause_agent(job: LongJob) -> None:
    agent = job.job.agents[job.chance.choice(HOSTS)].pid
    os.kill(agent, signal.SIGSTOP)
    time.sleep(job.chance.uniform(0.5, 3.0))
    os.kill(agent, signal.SIGCONT)


def preempt(job: LongJob, number: int = signal.SIGTERM) -> None:
    for agent in job.job.agents.values():
        agent.send_signal(number)


def interrupt(job: LongJob) -> None:
    job.job.agents[job.chance.choice(HOSTS)].send_signal(signal.SIGINT)


def hang_up(job: LongJob) -> None:
    preempt(job, signal.SIGHUP)


def remove_logs(job: LongJob) -> None:
    shutil.rmtree(job.folder.logs)
    time.sleep(0.5)
    job.folder.logs.mkdir()


def fill_disk(job: LongJob) -> None:
    """Files of the agents and ranks cannot grow for a while: logs, states, checkpoints."""
    pids = job.job.members()
    with small_files(pids):
        time.sleep(job.chance.uniform(0.3, 1.5))


def damage_checkpoint(job: LongJob) -> None:
    """The newest checkpoint loses bytes, then a rank dies."""
    if newest := newest_good(job.folder.checkpoints).step:
        victim = next(iter((job.folder.checkpoints / f"step-{newest:08d}").glob("*.bin")), None)
        if victim:
            with suppress(OSError):
                os.truncate(victim, victim.stat().st_size // 2)
    kill_rank(job)


def attack(job: LongJob) -> None:
    where = f"{job.job.host}:{job.job.port}"
    seed = str(job.chance.randrange(1 << 30))
    command = [sys.executable, str(ATTACKER), where, "--seconds=1", "--run-id=simulated", f"--seed={seed}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 * slowness(), check=False)
    if done.returncode:
        raise SystemExit(f"the attacker was let in: {done.stdout}{done.stderr}")


LONG_KINDS: dict[str, tuple[str, Callable[[LongJob], None]]] = {
    "kill rank": ("training", kill_rank),
    "terminate rank": ("training", terminate_rank),
    "stop rank": ("training", stop_rank),
    "kill agent": ("training", kill_agent),
    "kill coordinator": ("training", kill_coordinator),
    "kill both agents": ("training", kill_both_agents),
    "kill fork server": ("training", kill_server),
    "stop fork server": ("training", stop_server),
    "stop fork server, kill rank": ("start", stop_server_and_kill_rank),
    "pause agent": ("training", pause_agent),
    "preempt": ("training", preempt),
    "interrupt": ("training", interrupt),
    "hang up": ("training", hang_up),
    "remove logs": ("training", remove_logs),
    "fill disk": ("training", fill_disk),
    "attack": ("training", attack),
    "kill rank in a save": ("save", kill_rank),
    "kill agent in a save": ("save", kill_agent),
    "kill coordinator in a save": ("save", kill_coordinator),
    "fill disk in a save": ("save", fill_disk),
    "damage checkpoint": ("save", damage_checkpoint),
    "kill rank in a restart": ("start", kill_during_restart),
    "kill agent in a restart": ("start", kill_agent_during_restart),
}


@contextmanager
def small_files(pids: list[int]) -> Iterator[None]:
    """Files of these processes cannot grow over a few bytes for a while."""
    before = {}
    for pid in pids:
        with suppress(OSError):
            before[pid] = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (16, before[pid][1]))
    try:
        yield
    finally:
        for pid, limits in before.items():
            with suppress(OSError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


class ShortJob:
    """A `launcher run` of two ranks that is struck once."""

    def __init__(self, folder: Path, data: Path, chance: random.Random) -> None:
        self.chance, self.marked, self.path = chance, Marked(), folder
        shape = ("cluster.node.num_gpus=2", "layout.tp=1", "layout.pp=1", "layout.dp=2")
        train = (f"train.steps={STEPS_OF_SHORT}", f"train.checkpoint_every={EVERY}", f"train.data={data}")
        self.command = [
            *(sys.executable, "-c", "from launcher.cli import main; raise SystemExit(main())", "run"),
            *(*shape, *train, *SMALL, "launch.max_restarts=1", "launch.warm=never", f"run_dir={folder / 'run'}"),
        ]
        self.folder = RunFolder(folder / "run")
        folder.mkdir()

    def start(self) -> subprocess.Popen[str]:
        with (self.path / "output").open("a") as output:
            return subprocess.Popen(
                self.command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=self.marked.variables,
                start_new_session=True, text=True,
            )  # fmt: skip

    def wait(self, run: subprocess.Popen[str], kind: str) -> None:
        """Until the moment of the fault."""
        phase = SHORT_KINDS[kind][0]
        if phase == "start":
            time.sleep(self.chance.uniform(0.1, 6.0))
            return
        last = STEPS_OF_SHORT if phase == "shutdown" else self.chance.randrange(1, STEPS_OF_SHORT)
        while run.poll() is None:
            if phase == "save" and any(self.folder.checkpoints.glob(".saving-*")):
                return
            if phase != "save" and steps_done(self.folder) >= last:
                time.sleep(self.chance.uniform(0.0, 0.5))
                return
            time.sleep(0.005)

    def strike(self, kind: str, expected: list[tuple[int, float]]) -> Fault:
        phase, blow = SHORT_KINDS[kind]
        fault, began, run = Fault(kind, phase), time.monotonic(), self.start()
        self.wait(run, kind)
        committed = newest_good(self.folder.checkpoints).step or 0 if self.folder.checkpoints.exists() else 0
        starts = len(resumed_after(self._log()))
        if run.poll() is None:
            with suppress(ProcessLookupError, IndexError):
                blow(self, run)
        code = self.wait_for_end(run)
        for _ in range(3):
            if code != 0:
                code = self.wait_for_end(self.start())
        newer = resumed_after(self._log())[starts:]
        fault.lost_steps = max(0, *(committed - after for after in newer), 0)
        fault.recovered = code == 0 and losses(self.folder) == expected and self.folder.result.exists()
        fault.seconds = round(time.monotonic() - began, 2)
        fault.note = "" if fault.recovered else f"exit code {code}, {len(losses(self.folder))} losses"
        return fault

    def _log(self) -> str:
        path = self.folder.rank_log(0)
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for_end(self, run: subprocess.Popen[str]) -> int | None:
        patience = Patience(BACK_S)
        while run.poll() is None:
            if patience.over():
                self.marked.kill()
                run.wait()
                return None
            time.sleep(0.05)
        return run.returncode


def send(number: int) -> Callable[[ShortJob, subprocess.Popen[str]], None]:
    return lambda _, run: run.send_signal(number)


def kill_below(job: ShortJob, run: subprocess.Popen[str]) -> None:
    """One of the processes below the command: planner, fork server, rank, or what these have started."""
    os.kill(job.chance.choice(process.descendants(run.pid)), signal.SIGKILL)


def pause(job: ShortJob, run: subprocess.Popen[str]) -> None:
    victim = job.chance.choice([run.pid, *process.descendants(run.pid)])
    os.kill(victim, signal.SIGSTOP)
    time.sleep(job.chance.uniform(0.2, 1.5))
    os.kill(victim, signal.SIGCONT)


def disk_is_full(job: ShortJob, run: subprocess.Popen[str]) -> None:
    with small_files([run.pid, *process.descendants(run.pid)]):
        time.sleep(job.chance.uniform(0.2, 1.0))


SHORT_KINDS: dict[str, tuple[str, Callable[[ShortJob, subprocess.Popen[str]], None]]] = {
    f"{what} in the {phase}": (phase, blow)
    for phase in ("start", "save", "shutdown")
    for what, blow in (
        ("kill command", send(signal.SIGKILL)),
        ("interrupt", send(signal.SIGINT)),
        ("terminate", send(signal.SIGTERM)),
        ("hang up", send(signal.SIGHUP)),
        ("kill one below", kill_below),
        ("pause one", pause),
        ("full disk", disk_is_full),
    )
}


@dataclass
class Summary:
    """What the last line says."""

    faults: list[Fault] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)

    def problems(self) -> list[str]:
        """What did not hold, the shortest and most telling first."""
        bad = [f"{fault}" for fault in self.faults if not fault.recovered or fault.lost_steps]
        left = [f"left behind: {process}" for process in self.left]
        return [*self.unequal, *bad, *left, *([] if self.faults else ["no fault was made"])]

    @property
    def passed(self) -> bool:
        return not self.problems()

    def to_dict(self) -> dict[str, object]:
        return {
            "faults": len(self.faults),
            "recovered": sum(fault.recovered for fault in self.faults),
            "steps_lost_beyond_the_last_commit": sum(fault.lost_steps for fault in self.faults),
            "processes_left": self.left,
            "losses_unequal": self.unequal,
            "by_phase": Counter(fault.phase for fault in self.faults),
            "kinds": len({fault.kind for fault in self.faults}),
            "seconds": round(sum(fault.seconds for fault in self.faults), 1),
            "load": os.getloadavg()[0],
        }

    def add(self, fault: Fault) -> None:
        self.faults.append(fault)
        print(f"{len(self.faults):3} {fault}", file=sys.stderr, flush=True)


def strike_long(folder: Path, data: Path, kinds: list[str], chance: random.Random, summary: Summary) -> None:
    """Long trainings, each with as many faults as it has time for; their losses must be those of one left alone."""
    steps = min(MOST_STEPS, STEPS_PER_FAULT * len(kinds))
    expected, left, number = losses_alone(folder / "alone", data, steps=steps), list(kinds), 0
    while left:
        job = LongJob(folder / f"struck-{number}", data, steps=steps, chance=chance)
        strike_one_long(job, left, expected, summary)
        number += 1


def losses_alone(folder: Path, data: Path, *, steps: int) -> list[tuple[int, float]]:
    """Of a training without faults; SystemExit unless it was one: complete, and its ranks were started once.

    An agent that could not start, since another program took its port, is started again, like those of the struck ones.
    """
    alone = LongJob(folder, data, steps=steps, chance=random.Random(0))
    try:
        for name in HOSTS:
            alone.start(name)
        codes, found = alone.finish(), losses(alone.folder)
    finally:
        alone.marked.kill()
        alone.job.kill_all()
    starts = resumed_after(alone.job.log(0))
    if set(codes.values()) != {0} or [step for step, _ in found] != list(range(1, steps + 1)) or starts != [0]:
        said = "\n".join(f"== {name}\n{alone.job.reported(name)[-3000:]}" for name in HOSTS)
        raise SystemExit(
            f"the training left alone gives no losses to compare with: exit codes {codes}, {len(found)} of {steps} "
            f"losses, rank 0 started after steps {starts}\n{said}"
        )
    return found


def strike_one_long(job: LongJob, kinds: list[str], expected: list[tuple[int, float]], summary: Summary) -> None:
    """One long training; takes from `kinds` what it was struck with."""
    every, steps = list(kinds), 0
    try:
        for name in job.chance.sample(HOSTS, len(HOSTS)):
            job.start(name)
        if not job.wait_for(lambda: steps_done(job.folder) >= 2):
            raise SystemExit(f"the training did not begin: {[job.job.reported(name)[-3000:] for name in HOSTS]}")
        while kinds and steps < job.steps - EVERY:
            summary.add(job.strike(kinds.pop(0)))
            steps = steps_done(job.folder)
            if not summary.faults[-1].recovered:
                print("\n".join(f"== {name}\n{job.job.reported(name)[-3000:]}" for name in HOSTS), file=sys.stderr)
                break
        codes = job.finish()
        struck = every[: len(every) - len(kinds)]
        unequal = differences(losses(job.folder), expected, struck)
        if unequal or set(codes.values()) != {0}:
            summary.unequal.append(f"{unequal or 'losses equal'}, exit codes {codes}, after {struck}")
            print("\n".join(f"== {name}\n{job.job.reported(name)[-3000:]}" for name in HOSTS), file=sys.stderr)
        summary.left += job.marked.left()
    finally:
        job.marked.kill()
        job.job.kill_all()


def strike_short(folder: Path, data: Path, kinds: list[str], chance: random.Random, summary: Summary) -> None:
    """Short trainings, each with one fault."""
    alone = ShortJob(folder / "alone", data, chance)
    if alone.wait_for_end(alone.start()):
        raise SystemExit((folder / "alone" / "output").read_text()[-3000:])
    expected = losses(alone.folder)
    for number, kind in enumerate(kinds):
        job = ShortJob(folder / f"run-{number}", data, chance)
        try:
            summary.add(job.strike(kind, expected))
            if not summary.faults[-1].recovered:
                print((job.path / "output").read_text()[-3000:], file=sys.stderr)
            summary.left += job.marked.left()
        finally:
            job.marked.kill()


def drawn(kinds: list[str], count: int, chance: random.Random) -> list[str]:
    """Return this number of kinds, equally often up to one."""
    found: list[str] = []
    while len(found) < count:
        found += chance.sample(kinds, len(kinds))
    return chance.sample(found[:count], count)


def run(faults: int, seed: int, *, only: str | None = None) -> Summary:
    """Strike `faults` times; `only`: long or short trainings. Interrupted, it says what became of those made so far."""
    chance, summary = random.Random(seed), Summary()
    num_long = {"long": faults, "short": 0}.get(only or "", round(LONG_SHARE * faults))
    long_kinds = drawn(list(LONG_KINDS), num_long, chance)
    short_kinds = drawn(list(SHORT_KINDS), faults - num_long, chance)
    with tempfile.TemporaryDirectory() as name, suppress(KeyboardInterrupt):
        folder = Path(name)
        data = token_file(folder)
        if long_kinds:
            (folder / "long").mkdir()
            strike_long(folder / "long", data, long_kinds, chance, summary)
        if short_kinds:
            (folder / "short").mkdir()
            strike_short(folder / "short", data, short_kinds, chance, summary)
    return summary


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["long", "short"])
    given = parser.parse_args()
    summary = run(given.faults, given.seed, only=given.only)
    print(json.dumps({"seed": given.seed, **summary.to_dict()}))
    return 0 if summary.passed and len(summary.faults) == given.faults else 1


if __name__ == "__main__":
    sys.exit(main())
