"""Rules on the life of a job: directives, signals, logs, requeue, secrets, environment."""

from __future__ import annotations

import re
from collections.abc import Iterator

from launcher.lint.finding import Rule, Subject, Trap
from launcher.lint.shell import assignments, program, unquote
from launcher.secret import SECRET_VALUES, is_secret_name
from launcher.text import whole_number

# In an argument: text with the form of a key, or what follows `wandb login` or an option named so.
SECRET_ARGUMENT = re.compile(
    rf"({SECRET_VALUES})"
    r"|(?:--[\w-]*(?:key|token|password|secret)[ =]+|wandb\s+login\s+(?:--\S+\s+)*)[\"']?([\w-]{20,})",
    re.IGNORECASE,
)
DEBUG = {"CUDA_LAUNCH_BLOCKING": ("1",), "NCCL_DEBUG": ("TRACE",), "TORCH_DISTRIBUTED_DEBUG": ("DETAIL",)}


def no_shebang(subject: Subject) -> Iterator[Trap]:
    first = subject.script.lines[0] if subject.script.lines else ""
    if not first.startswith("#!"):
        yield Trap(1, first or "(empty)")


def late_directive(subject: Subject) -> Iterator[Trap]:
    for number, text in enumerate(subject.script.lines, 1):
        generated = number in subject.script.here_document_lines  # of a script that this one writes
        if text.startswith("#SBATCH") and number > subject.script.first_command_line and not generated:
            yield Trap(number, text)


def broken_directive(subject: Subject) -> Iterator[Trap]:
    for number, text in enumerate(subject.script.lines, 1):
        if re.match(r"\s*#\s+SBATCH\s+-|\s+#SBATCH|#SBATCH-", text):
            yield Trap(number, text)


def variable_in_directive(subject: Subject) -> Iterator[Trap]:
    for directive in subject.script.directives:
        if "$" in directive.value:
            yield Trap(directive.line, f"--{directive.name}={directive.value}")


def log_folder_made_too_late(subject: Subject) -> Iterator[Trap]:
    for directive in subject.script.directives:
        folder = directive.value.rpartition("/")[0] if directive.name in ("output", "error") else ""
        for command in subject.script.commands if folder else ():
            words = program(command)
            if words[:1] == ("mkdir",) and any(unquote(word).rstrip("/") == folder for word in words[1:]):
                yield Trap(directive.line, f"--{directive.name}={directive.value}, and mkdir on line {command.line}")


def no_signal(subject: Subject) -> Iterator[Trap]:
    script = subject.script
    if script.starts and "time" in script.options and "signal" not in script.options:
        line = next(d.line for d in script.directives if d.name == "time")
        yield Trap(line, f"--time={script.options['time']} without --signal")


def signal_without_trap(subject: Subject) -> Iterator[Trap]:
    for directive in subject.script.directives:
        match = re.match(r"B:(?:SIG)?(\w+)", directive.value) if directive.name == "signal" else None
        if match and not any(program(c)[:1] == ("trap",) for c in subject.script.commands):
            yield Trap(directive.line, f"--signal={directive.value}, but no trap")


def trap_behind_foreground(subject: Subject) -> Iterator[Trap]:
    script = subject.script
    traps = [
        c for c in script.commands if program(c)[:1] == ("trap",) and re.search(r"\b(SIG)?(USR1|USR2|TERM)\b", c.text)
    ]
    for start in script.starts if traps else ():
        if start.operator != "&" and start.line > traps[0].line:
            yield Trap(start.line, f"in the foreground, with the trap of line {traps[0].line}: {start.text}")


def requeue_truncates_log(subject: Subject) -> Iterator[Trap]:
    script = subject.script
    requeues = "requeue" in script.options or "scontrol requeue" in script.text
    if requeues and script.options.get("open-mode") != "append":
        line = next((d.line for d in script.directives if d.name == "requeue"), 1)
        yield Trap(line, "requeue without --open-mode=append")


def exit_code_lost(subject: Subject) -> Iterator[Trap]:
    if re.search(r"^[ \t]*set[ \t]+-\w{0,8}[ \t]*pipefail|-o\s+pipefail", subject.script.text, re.MULTILINE):
        return
    for start in subject.script.starts:
        if start.operator == "|":
            yield Trap(start.line, f"{start.text} | …")


def secret_in_clear(subject: Subject) -> Iterator[Trap]:
    for command in (*subject.script.commands, *subject.script.in_tasks):
        for name, raw in assignments(command).items():
            value = unquote(raw)
            written_out = not re.search(r"[$`<]|your|xxx", value, re.IGNORECASE)
            if is_secret_name(name) and len(value) >= 8 and written_out:
                yield Trap(command.line, f"{name}={value[:3]}…")
        for match in SECRET_ARGUMENT.finditer(command.text):
            secret = match[1] or match[2]
            if secret not in map(unquote, assignments(command).values()):
                yield Trap(command.line, f"{command.text[: command.text.index(secret) + 3]}…")


def one_thread_by_accident(subject: Subject) -> Iterator[Trap]:
    script = subject.script
    cores = script.number("cpus-per-task")
    if cores is None or cores < 2:
        return
    ranks = 1
    for start in script.starts:
        nproc = start.flag("nproc-per-node") if start.launcher else None
        ranks = max(ranks, whole_number(nproc) or 1)
    if cores // ranks < 2:
        return
    set_to = [(c, unquote(v)) for c in script.commands for n, v in assignments(c).items() if n == "OMP_NUM_THREADS"]
    for command, value in set_to:
        if value == "1":
            yield Trap(command.line, f"OMP_NUM_THREADS=1 with {cores // ranks} cores for each rank")
    for start in script.starts if not set_to else ():
        if start.launcher and (start.launcher == "torchrun" or "torch.distributed" in start.launcher):
            yield Trap(
                start.line, f"{start.launcher} sets OMP_NUM_THREADS=1; there are {cores // ranks} cores for each rank"
            )


def devices_overridden(subject: Subject) -> Iterator[Trap]:
    for command in (*subject.script.commands, *subject.script.in_tasks):
        value = assignments(command).get("CUDA_VISIBLE_DEVICES")
        if value is not None:
            yield Trap(command.line, f"CUDA_VISIBLE_DEVICES={value}")


def debugging_left_on(subject: Subject) -> Iterator[Trap]:
    for command in subject.script.commands:
        for name, value in assignments(command).items():
            if unquote(value) in DEBUG.get(name, ()):
                yield Trap(command.line, f"{name}={value}")


def export_none(subject: Subject) -> Iterator[Trap]:
    script = subject.script
    if script.options.get("export", "").upper() != "NONE" or "SLURM_EXPORT_ENV" in script.text:
        return
    for start in script.starts:
        if start.starter == "srun" and "export" not in start.options:
            yield Trap(start.line, f"#SBATCH --export=NONE reaches this srun: {start.text}")


RULES = (
    Rule(
        "no-shebang", "error", no_shebang,
        "sbatch refuses a script whose first line does not name its interpreter.",
        "first line: #!/bin/bash",
    ),
    Rule(
        "late-directive", "error", late_directive,
        "Slurm stops reading directives at the first command: this line has no effect.",
        "move it above the first command",
    ),
    Rule(
        "broken-directive", "error", broken_directive,
        "only lines that begin with exactly #SBATCH and a blank are directives: this is a comment.",
        "write it as #SBATCH --option=value at the start of the line",
    ),
    Rule(
        "variable-in-directive", "error", variable_in_directive,
        "no shell reads directives: the dollar stays as it is written.",
        "Slurm's patterns (%j, %x, %A_%a) in file names, or the option on sbatch's command line",
    ),
    Rule(
        "log-folder-too-late", "error", log_folder_made_too_late,
        "Slurm opens the log before the script runs and makes no folder: the job fails at once, without a trace.",
        "make the folder before sbatch",
    ),
    Rule(
        "no-signal", "warning", no_signal,
        "at the time limit the ranks are killed without warning: everything since the last checkpoint is lost.",
        "#SBATCH --signal=B:USR1@300, a trap that passes it to the ranks, and a checkpoint there",
    ),
    Rule(
        "signal-without-trap", "error", signal_without_trap,
        "B: sends the signal to the batch shell alone, and a shell without a trap dies of it, taking the job along.",
        "trap '…' USR1 in the script, or drop the B: so that the tasks get it",
    ),
    Rule(
        "trap-behind-foreground", "error", trap_behind_foreground,
        "bash runs a trap only after the command in the foreground has ended: the signal is served too late.",
        "srun … & wait",
    ),
    Rule(
        "requeue-truncates-log", "warning", requeue_truncates_log,
        "a requeued job truncates its log: what the first start wrote is gone, the reason for the requeue with it.",
        "#SBATCH --open-mode=append",
    ),
    Rule(
        "exit-code-lost", "error", exit_code_lost,
        "a pipe ends with the code of its last command: a failed training counts as COMPLETED, and afterok continues.",
        "set -o pipefail",
    ),
    Rule(
        "secret-in-clear", "error", secret_in_clear,
        "Slurm keeps the script where others can read it (scontrol write batch_script, sacct -B), and so does git.",
        "wandb login (~/.netrc, mode 600), or source a file of mode 600; and revoke this key",
    ),
    Rule(
        "one-thread", "warning", one_thread_by_accident,
        "data loading and CPU optimizers run on one core of those requested; torchrun sets 1 unless it is set.",
        "export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / ranks per node))",
    ),
    Rule(
        "devices-overridden", "warning", devices_overridden,
        "Slurm sets CUDA_VISIBLE_DEVICES to what the job was given; another value takes GPUs of others or none.",
        "remove it and choose the device by local rank",
    ),
    Rule(
        "debugging-left-on", "warning", debugging_left_on,
        "it makes every kernel launch, collective or log line slow; it is meant for an hour of debugging.",
        "remove it",
    ),
    Rule(
        "export-none", "error", export_none,
        "srun inherits it as SLURM_EXPORT_ENV=NONE: the tasks have no PATH (execve: No such file or directory).",
        "unset SLURM_EXPORT_ENV before srun, or srun --export=ALL",
    ),
)  # fmt: skip
