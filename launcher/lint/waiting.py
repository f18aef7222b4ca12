"""Rules on what the batch shell waits for, and on what becomes of the job when it does not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from launcher.lint.finding import Rule, Subject, Trap
from launcher.lint.script import BatchScript
from launcher.lint.shell import ShellCommand, program

CAUGHT = re.compile(r"\b(?:SIG)?(?:USR1|USR2|TERM)\b")
KEEPS_CODE = re.compile(
    r"^[ \t]*set[ \t]+(-\w{0,8}e|-o[ \t]+errexit)|^#!.*[ \t]-\w{0,8}e\b|\$\?|\bexit[ \t]+\$|trap[ \t].*\bERR\b",
    re.MULTILINE,
)
LOOP = re.compile(r"^[ \t]*(for|while|until)\b", re.MULTILINE)
HARMLESS_END = ("echo", "date", "printf", "true", "set", "rm", "sacct", "seff", "squeue", "sleep", ":")


def _is(command: ShellCommand, *names: str) -> bool:
    return program(command)[:1] != () and program(command)[0].strip("{}") in names


def background_without_wait(subject: Subject) -> Iterator[Trap]:
    script = subject.script
    waits = [c.line for c in script.commands if _is(c, "wait") or "kill -0" in c.text or "tail --pid" in c.text]
    for start in script.starts:
        if start.operator == "&" and not any(line >= start.line for line in waits):
            yield Trap(start.line, f"{start.text} &")


def wait_cut_short_by_a_trap(subject: Subject) -> Iterator[Trap]:
    script, code = subject.script, subject.script.code
    traps = [c for c in script.commands if _is(c, "trap") and CAUGHT.search(c.text) and not _ignores(c)]
    background = any(start.operator == "&" for start in script.starts)
    goes_on = re.search(r"scontrol\s+requeue|\bexit\b|kill -0|while\b.*\bwait", code) is not None
    if traps and background and not goes_on and len(re.findall(r"\bwait\b", code)) == 1:
        line = next(c.line for c in script.commands if _is(c, "wait")) if _waits(script) else traps[0].line
        yield Trap(line, f"one wait, with the trap of line {traps[0].line}")


def _ignores(command: ShellCommand) -> bool:
    return len(program(command)) > 1 and program(command)[1] in ("''", '""', "-")


def _waits(script: BatchScript) -> bool:
    return any(_is(c, "wait") for c in script.commands)


def exit_code_forgotten(subject: Subject) -> Iterator[Trap]:
    script, code = subject.script, subject.script.code
    if KEEPS_CODE.search(code):
        return
    starts = [start for start in script.starts if start.operator in ("\n", ";")]
    if not starts or not script.commands:
        return
    after = [command for command in script.commands if command.line > starts[-1].line]
    if after and all(_is(command, *HARMLESS_END) for command in after):
        yield Trap(starts[-1].line, f"{starts[-1].text}, and then {after[-1].text}")


def requeue_on_any_failure(subject: Subject) -> Iterator[Trap]:
    commands = subject.script.commands
    counted = "RESTART_COUNT" in subject.script.text
    for before, command in pairwise(commands):
        if "scontrol requeue" in command.text and before.operator == "||" and not counted:
            yield Trap(command.line, f"{before.text} || {command.text}")
    for command in commands:
        if _is(command, "trap") and "scontrol requeue" in command.text and re.search(r"\b(EXIT|ERR)\b", command.text):
            yield Trap(command.line, command.text)


def steps_that_share_nothing(subject: Subject) -> Iterator[Trap]:
    if LOOP.search(subject.script.code):
        return  # it may be one command for each node
    together = [start for start in subject.script.starts if start.starter == "srun" and start.operator == "&"]
    shares = {"exact", "exclusive", "overlap", "mem"}
    for start in together[1:]:
        if not shares & set(start.options) and not shares & set(together[0].options):
            yield Trap(start.line, f"together with the step of line {together[0].line}: {start.text}")


def one_node_after_the_other(subject: Subject) -> Iterator[Trap]:
    for start in subject.script.starts:
        on = start.options.get("nodelist", "")
        if start.launcher and "$" in on and start.operator != "&" and (subject.script.num_nodes or 2) > 1:
            yield Trap(start.line, start.text)


def terminal_in_a_batch_job(subject: Subject) -> Iterator[Trap]:
    for start in subject.script.starts:
        if "pty" in start.options:
            yield Trap(start.line, start.text)


def allocation_inside_the_job(subject: Subject) -> Iterator[Trap]:
    for command in subject.script.commands:
        if _is(command, "salloc"):
            yield Trap(command.line, command.text)


RULES = (
    Rule(
        "background-without-wait", "error", background_without_wait,
        "the batch script continues and ends, Slurm kills the step with it, and the job counts as COMPLETED after a "
        "second.",
        "wait, as the last line",
    ),
    Rule(
        "wait-cut-short", "error", wait_cut_short_by_a_trap,
        "a trapped signal ends `wait` at once: after the trap the script ends, and Slurm kills the ranks while they "
        "write their checkpoint.",
        "wait again: trap 'kill -USR1 $pid; wait $pid' USR1",
    ),
    Rule(
        "exit-code-forgotten", "warning", exit_code_forgotten,
        "a job ends with the code of its last command: a failed training counts as COMPLETED, and afterok continues.",
        "set -e, or keep it: srun …; code=$?; …; exit $code",
    ),
    Rule(
        "requeue-on-any-failure", "warning", requeue_on_any_failure,
        "an error of the program comes back with the job: it fails, waits and fails again for as long as it is let.",
        "requeue after the time limit's signal only, or stop at a number of $SLURM_RESTART_COUNT",
    ),
    Rule(
        "steps-one-after-the-other", "warning", steps_that_share_nothing,
        "a step takes all that the job has: the second waits for the first (\"Job step creation temporarily "
        "disabled\", https://slurm.schedmd.com/srun.html#OPT_exact).",
        "srun --exact with the nodes, tasks and GPUs of each, or --overlap",
    ),
    Rule(
        "nodes-one-after-the-other", "error", one_node_after_the_other,
        "srun returns when its task ends: the launcher of the first node waits for others that start after it.",
        "srun … & for each node and wait after the loop, or one srun for all nodes",
    ),
    Rule(
        "terminal-in-batch", "warning", terminal_in_a_batch_job,
        "a batch job has no terminal to give: the step fails, or only its first task can be seen.",
        "srun without --pty",
    ),
    Rule(
        "allocation-in-job", "error", allocation_inside_the_job,
        "salloc waits for another allocation, and the nodes of this job idle until it comes.",
        "srun uses the nodes of the job itself",
    ),
)  # fmt: skip
