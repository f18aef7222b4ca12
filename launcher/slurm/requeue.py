"""Decides whether to requeue a stopped job, and whether a requeued job may start. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from launcher.slurm.unstarted import in_words

# Starts from the same checkpoint after which a job counts as a crash loop. A node failure is requeued by Slurm itself
# and may happen twice before the first checkpoint; a third time is no accident.
MAX_STARTS_WITHOUT_PROGRESS = 3
FIRST_TIME = 10**12  # a mark from here on is no step, but when launch.progress changed (milliseconds since 1970)


@dataclass(frozen=True)
class JobStart:
    """One start of the job: Slurm's restart count, and the step of the newest checkpoint then (None: none).

    `sent_back`: Slurm ended it from outside (preemption, scontrol requeue, scancel), so it says nothing about the
    program.
    """

    restart: int
    checkpoint_step: int | None
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
    checkpoint_step: int | None = None
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
    for start in reversed(starts[:-1]):
        if start.checkpoint_step != now.checkpoint_step:
            break
        same += not start.sent_back
    if same <= MAX_STARTS_WITHOUT_PROGRESS or always:
        return None
    where = "without any checkpoint"
    if now.checkpoint_step is not None:
        step = now.checkpoint_step < FIRST_TIME
        where = f"from the checkpoint of step {now.checkpoint_step}" if step else "from what is in launch.progress"
    return (
        f"a crash loop: {same} starts {where}, and no newer checkpoint since; see the ends of the logs above, "
        "lower train.checkpoint_every if the starts were too short, then submit again"
    )


def requeues(starts: Sequence[JobStart]) -> int:
    """Return how often the current job was requeued, except by Slurm itself, such as by preemption."""
    now, outside = starts[-1].restart, 0
    for start in reversed(starts[:-1]):
        if start.restart >= now:
            break  # of an earlier job
        outside += start.sent_back
        if start.restart == 0:
            break
    return max(0, now - outside)


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
    if not (always or nodes) and outcome.checkpoint_step == starts[-1].checkpoint_step:
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
