"""Decides whether to requeue a stopped job, and whether a requeued job may start. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from launcher.slurm.unstarted import in_words

# Starts from the same checkpoint after which a job counts as a crash loop. A node failure is requeued by Slurm itself
# and may happen twice before the first checkpoint; a third time is no accident.
MAX_STARTS_WITHOUT_PROGRESS = 3
SAVED_KEYS = ("checkpoint_step", "checkpoint_at")  # of the ledger's lines


@dataclass(frozen=True)
class Saved:
    """What a job has saved: the step of its newest good checkpoint, and when it was written, in ms since 1970.

    Of a script with launch.progress only the time is known; where nothing was saved, neither is.
    """

    step: int | None = None
    at: int | None = None

    def is_newer_than(self, before: Saved) -> bool:
        """By time: a run that went on from before a damaged checkpoint saves the same or an earlier step again."""
        if self.at is None or before.at is None:
            return self.at is not None or (self.step is not None and self.step != before.step)
        return self.at > before.at

    def details(self) -> dict[str, int | None]:
        """As the ledger has it."""
        return dict(zip(SAVED_KEYS, (self.step, self.at), strict=True))


@dataclass(frozen=True)
class JobStart:
    """One start of the job: Slurm's restart count, and what was saved then.

    `sent_back`: Slurm ended it from outside (preemption, scontrol requeue, scancel), so it says nothing about the
    program.
    """

    restart: int
    saved: Saved = Saved()
    sent_back: bool = False


@dataclass(frozen=True)
class Outcome:
    """How the agents ended.

    `signalled`: Slurm's signal reached the batch script. `stopped`: the agents were asked to stop, and did: by that
    signal, or by the TERM that preemption sends only to the tasks. `lost_nodes`: hosts that no longer answer.
    `preempted`: by Slurm's record, independent of the agents. `unstarted`: hosts that could not start their agent, with
    the reason; `everywhere`: these are all.
    """

    code: int
    signalled: bool
    stopped: bool = False
    lost_nodes: tuple[str, ...] = ()
    saved: Saved = Saved()
    preempted: bool = False
    unstarted: Mapping[str, str] = field(default_factory=dict)
    everywhere: bool = False


@dataclass(frozen=True)
class Decision:
    """What the driver does: requeue or not, the exit code of the job, and why; `without`: nodes to exclude."""

    requeue: bool
    code: int
    why: str
    without: tuple[str, ...] = ()


def start_problem(starts: Sequence[JobStart], *, max_requeues: int, always: bool = False) -> str | None:
    """Return why the last of `starts`, which has just begun, must not continue; None if it may."""
    now = starts[-1]
    if requeues(starts) > max_requeues:
        return f"launch.max_requeues={max_requeues} are used up: submit the run folder again to continue"
    same = 1
    for start in reversed(_of_this_job(starts)[:-1]):
        if now.saved.is_newer_than(start.saved):
            break
        same += not start.sent_back
    if same <= MAX_STARTS_WITHOUT_PROGRESS or always:
        return None
    where = "without any checkpoint" if now.saved == Saved() else "from what is in launch.progress"
    where = where if now.saved.step is None else f"from the checkpoint of step {now.saved.step}"
    return (
        f"a crash loop: {same} starts {where}, and no newer checkpoint since; see the ends of the logs above, "
        "lower train.checkpoint_every if the starts were too short, then submit again"
    )


def requeues(starts: Sequence[JobStart]) -> int:
    """Return how often the current job was requeued, except by Slurm itself, such as by preemption."""
    mine = _of_this_job(starts)
    return max(0, mine[-1].restart - sum(start.sent_back for start in mine[:-1]))


def _of_this_job(starts: Sequence[JobStart]) -> Sequence[JobStart]:
    """Return the last starts, with rising restart counts: those before are of an earlier job in the same folder."""
    first = len(starts) - 1
    while first and starts[first - 1].restart < starts[first].restart:
        first -= 1
    return starts[first:]


def decide(
    outcome: Outcome, starts: Sequence[JobStart], *, requeue: bool, max_requeues: int, always: bool = False
) -> Decision:
    """Decide what follows the agents' end, in the last of `starts`.

    An application error is never requeued. Preemption and the loss of a node are, and what some nodes could not start,
    without these; a stop before the time limit is if a newer checkpoint was written since this start. The number of
    starts limits all except preemption.
    """
    if outcome.code == 0:
        return Decision(False, 0, "the run is complete")
    cause = _cause(outcome)
    if cause is None:
        return Decision(False, outcome.code, "the job failed by itself: not requeued")
    if outcome.everywhere and not outcome.preempted:
        return Decision(False, outcome.code, f"{cause}, as none could: not requeued, for no node is at fault")
    if not requeue:
        return Decision(False, outcome.code, f"{cause}; not requeued: launch.requeue=false")
    if outcome.preempted:
        return Decision(True, outcome.code, f"{cause}; requeued")
    if requeues(starts) >= max_requeues:
        return Decision(False, outcome.code, f"{cause}; not requeued: launch.max_requeues={max_requeues} are used up")
    nodes = (*outcome.lost_nodes, *outcome.unstarted)
    if not (always or nodes) and not outcome.saved.is_newer_than(starts[-1].saved):
        return Decision(False, outcome.code, f"{cause}; not requeued: no new checkpoint since this start")
    return Decision(True, outcome.code, f"{cause}; requeued", without=tuple(sorted(outcome.unstarted)))


def _cause(outcome: Outcome) -> str | None:
    """Return what outside the job ended it; None if nothing did."""
    if outcome.preempted:
        return "preempted by Slurm"
    if outcome.lost_nodes:
        return f"{', '.join(outcome.lost_nodes)} no longer answered"
    if outcome.unstarted:
        return in_words(outcome.unstarted)
    if outcome.signalled:
        return "stopped by Slurm's signal (time limit, preemption or scancel --signal)"
    if outcome.stopped:
        return "stopped by a signal to its tasks (preemption)"
    return None
