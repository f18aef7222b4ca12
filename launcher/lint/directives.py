"""Rules on single `#SBATCH` lines: what Slurm refuses, ignores, or takes for something else."""

from __future__ import annotations

import re
from collections.abc import Iterator

from launcher.lint.finding import Rule, Subject, Trap, nearest
from launcher.text import whole_number

# sbatch --help of Slurm 22.05, and what 23.02 to 25.05 added: https://slurm.schedmd.com/sbatch.html
SBATCH_OPTIONS: frozenset[str] = frozenset(
    re.findall(
        r"[\w-]+",
        """
        account acctg-freq array batch bb bbf begin chdir cluster-constraint clusters comment constraint container
        consolidate-segments container-id contiguous core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task
        deadline delay-boot dependency distribution error exclude exclusive export export-file external extra
        extra-node-info
        get-user-env gid gpu-bind gpu-freq gpus gpus-per-node gpus-per-socket gpus-per-task gres gres-flags help hint
        hold ignore-pbs input job-name kill-on-invalid-dep licenses mail-type mail-user mcs-label mem mem-bind
        mem-per-cpu mem-per-gpu mincpus network nice no-kill no-requeue nodefile nodelist nodes ntasks ntasks-per-core
        ntasks-per-gpu ntasks-per-node ntasks-per-socket oom-kill-step open-mode output overcommit oversubscribe
        parsable partition power prefer priority profile propagate qos quiet reboot requeue reservation resources
        resv-ports segment signal sockets-per-node spread-job spread-segments stepmgr switches test-only thread-spec
        threads-per-core time time-min tmp tres-bind tres-per-task uid usage use-min-nodes verbose version wait
        wait-all-nodes wckey workdir wrap
        """,
    )
)
PLUGIN_OPTIONS = ("container-", "no-container-")  # pyxis and others of its kind add options of their own
HOURS = ("12", "24", "36", "48", "72", "96", "168")  # what is meant as hours more often than as minutes
TYPOGRAPHIC = re.compile("[“”‘’–—\u00a0\u200b]")


def _options(subject: Subject) -> Iterator[tuple[int, str, str]]:
    for directive in subject.script.directives:
        yield directive.line, directive.name, directive.value


def dos_line_breaks(subject: Subject) -> Iterator[Trap]:
    if "\r\n" in subject.script.raw:
        yield Trap(1 + subject.script.raw.partition("\r\n")[0].count("\n"), "lines end with \\r\\n")


def typographic_characters(subject: Subject) -> Iterator[Trap]:
    for number, text in enumerate(subject.script.lines, 1):
        if text.startswith("#SBATCH") and (found := TYPOGRAPHIC.search(text.partition(" #")[0])):
            yield Trap(number, f"U+{ord(found[0]):04X} in: {text}")
    for command in subject.script.commands:
        if found := TYPOGRAPHIC.match(command.words[0]) or next(
            (m for word in command.words if (m := re.match("[“”–—]", word))), None
        ):
            yield Trap(command.line, f"U+{ord(found[0]):04X} in: {command.text}")


def unknown_option(subject: Subject) -> Iterator[Trap]:
    for line, name, _ in _options(subject):
        if name in SBATCH_OPTIONS or name.startswith(PLUGIN_OPTIONS) or _is_abbreviation(name):
            continue
        if near := nearest(name, SBATCH_OPTIONS):
            yield Trap(line, f"--{name}, did you mean --{near}?")


def _is_abbreviation(name: str) -> bool:
    """Whether getopt takes it for the one option that begins so."""
    return len([option for option in SBATCH_OPTIONS if option.startswith(name)]) == 1


def blank_around_equals(subject: Subject) -> Iterator[Trap]:
    for number, text in enumerate(subject.script.lines, 1):
        if re.match(r"#SBATCH\s.*?--[\w-]+\s*(?:\s=|=\s+[^\s-])", text.partition(" #")[0]):
            yield Trap(number, text)
    for command in subject.script.commands:
        if len(command.words) > 2 and command.words[1] == "=" and re.fullmatch(r"[A-Z_]\w*", command.words[0]):
            yield Trap(command.line, command.text)


def tilde_in_directive(subject: Subject) -> Iterator[Trap]:
    for line, name, value in _options(subject):
        if value.startswith("~"):
            yield Trap(line, f"--{name}={value}")


def option_given_twice(subject: Subject) -> Iterator[Trap]:
    seen: dict[str, str] = {}
    for line, name, value in _options(subject):
        if name in seen and seen[name] != value and name not in ("dependency", "licenses"):
            yield Trap(line, f"--{name}={value}, after --{name}={seen[name]}")
        seen[name] = value


def minutes_for_hours(subject: Subject) -> Iterator[Trap]:
    for line, name, value in _options(subject):
        hours = value.removesuffix(":00")
        if name == "time" and ":" not in hours and "-" not in hours and hours.lstrip("0") in HOURS:
            yield Trap(line, f"--time={value} is {hours} minutes")


def memory_given_twice(subject: Subject) -> Iterator[Trap]:
    given = {name: line for line, name, _ in _options(subject) if name in ("mem", "mem-per-cpu", "mem-per-gpu")}
    if len(given) > 1:
        yield Trap(max(given.values()), " and ".join(f"--{name}" for name in given))


def gpus_given_twice(subject: Subject) -> Iterator[Trap]:
    nodes, counts = subject.script.num_nodes or 1, {}
    for line, name, value in _options(subject):
        match = re.search(r"(?:^|:)([0-9]{1,9})(?:\(|,|$)", value)
        if match and (name in ("gpus", "gpus-per-node") or (name == "gres" and value.startswith("gpu"))):
            counts[name] = (int(match[1]) * (1 if name == "gpus" else nodes), line, value)
    if len({total for total, _, _ in counts.values()}) > 1:
        found = " and ".join(f"--{name}={value}" for name, (_, _, value) in counts.items())
        yield Trap(max(line for _, line, _ in counts.values()), found)


def total_gpus_below_nodes(subject: Subject) -> Iterator[Trap]:
    nodes = subject.script.num_nodes
    for line, name, value in _options(subject):
        count = whole_number(value.rpartition(":")[2])
        if name == "gpus" and nodes and count is not None and count % nodes:
            yield Trap(line, f"--gpus={value} in a job of {nodes} nodes")


def fewer_tasks_than_the_nodes_need(subject: Subject) -> Iterator[Trap]:
    script = subject.script
    line = next((line for line, name, _ in _options(subject) if name == "ntasks"), 0)
    for where, options in ((line, script.options), *((start.line, start.options) for start in script.starts)):
        nodes, per_node = options.get("nodes", "").partition("-")[0], options.get("ntasks-per-node", "1")
        tasks = options.get("ntasks", "")
        if not all(re.fullmatch(r"[0-9]{1,6}", text) for text in (nodes, tasks, per_node)):
            continue
        if int(tasks) < int(nodes) * int(per_node):
            each = f" × {per_node} tasks on each" if per_node != "1" else ""
            yield Trap(where, f"--ntasks={tasks} for {nodes} nodes{each}")


def one_log_for_all_jobs(subject: Subject) -> Iterator[Trap]:
    for line, name, value in _options(subject):
        if name in ("output", "error") and value and "%" not in value and value != "/dev/null":
            yield Trap(line, f"--{name}={value}")


def one_log_for_all_tasks_of_an_array(subject: Subject) -> Iterator[Trap]:
    for line, name, value in _options(subject):
        shared = "%" in value and not re.search(r"%\d*[aj]", value, re.IGNORECASE)
        if name == "output" and "array" in subject.script.options and shared:
            yield Trap(line, f"--array with --output={value}")


def mail_to_nobody(subject: Subject) -> Iterator[Trap]:
    for line, name, value in _options(subject):
        if name == "mail-user" and "mail-type" not in subject.script.options:
            yield Trap(line, f"--mail-user={value} without --mail-type")


def short_notice(subject: Subject) -> Iterator[Trap]:
    for line, name, value in _options(subject):
        lead = value.partition("@")[2]
        if name == "signal" and re.fullmatch(r"[0-9]{1,6}", lead) and int(lead) < 60:
            yield Trap(line, f"--signal={value}")


def one_core_by_default(subject: Subject) -> Iterator[Trap]:
    script = subject.script
    says = {"cpus-per-task", "cpus-per-gpu", "exclusive", "mincpus", "extra-node-info", "cores-per-socket"}
    for start in script.starts:
        wanted = says & {*script.options, *start.options}
        if start.starter == "srun" and start.launcher and script.gpus_per_node and not wanted:
            yield Trap(start.line, f"{start.launcher} without --cpus-per-task")


def old_option(subject: Subject) -> Iterator[Trap]:
    for line, name, value in _options(subject):
        if name == "workdir":
            yield Trap(line, f"--workdir={value}")


RULES = (
    Rule(
        "dos-line-breaks", "error", dos_line_breaks,
        "sbatch refuses a script with DOS line breaks; sourced files with them set variables that end in \\r.",
        "dos2unix SCRIPT, or sed -i 's/\\r$//' SCRIPT",
    ),
    Rule(
        "typographic-character", "error", typographic_characters,
        "a dash or quotation mark that was copied from a web page or a text processor means nothing to sbatch or bash.",
        "type - and \" yourself",
    ),
    Rule(
        "unknown-option", "error", unknown_option,
        "sbatch does not know this option and refuses the script.",
        "correct its name: sbatch --help lists them",
    ),
    Rule(
        "blank-around-equals", "error", blank_around_equals,
        "sbatch takes the = for the value (invalid count), and bash takes the name for a program.",
        "write name=value without blanks",
    ),
    Rule(
        "tilde-in-directive", "error", tilde_in_directive,
        "no shell reads directives: Slurm makes or looks for a folder named ~.",
        "a path from / on, or one relative to the folder that sbatch is called in",
    ),
    Rule(
        "option-twice", "warning", option_given_twice,
        "the last one wins, and the reader of the first is misled.",
        "keep one",
    ),
    Rule(
        "minutes-for-hours", "warning", minutes_for_hours,
        "a plain number is minutes, and NN:00 is minutes and seconds.",
        "write hours as HH:MM:SS, days as D-HH",
    ),
    Rule(
        "memory-twice", "error", memory_given_twice,
        "--mem, --mem-per-cpu and --mem-per-gpu exclude each other: sbatch refuses two, or the last one wins.",
        "keep one; --mem=0 asks for all memory of a node",
    ),
    Rule(
        "gpus-twice", "error", gpus_given_twice,
        "the options ask for different numbers of GPUs: Slurm refuses the job, or gives the wrong number.",
        "keep --gpus-per-node alone",
    ),
    Rule(
        "gpus-is-the-total", "error", total_gpus_below_nodes,
        "--gpus (-G) counts the GPUs of the whole job, and these cannot be shared out among its nodes evenly.",
        "--gpus-per-node=N",
    ),
    Rule(
        "too-few-tasks", "error", fewer_tasks_than_the_nodes_need,
        "with fewer tasks than nodes × tasks per node Slurm takes nodes away (\"can't run N processes on M nodes\") or "
        "leaves GPUs without a rank, and the rendezvous waits for ranks that never start.",
        "leave --ntasks out, or set it to nodes × tasks per node",
    ),
    Rule(
        "one-log-for-all-jobs", "warning", one_log_for_all_jobs,
        "two jobs, or a job and its requeued self, write into one file, and the second truncates it.",
        "put %j (job id) or %A_%a (array) into the name",
    ),
    Rule(
        "one-log-for-an-array", "warning", one_log_for_all_tasks_of_an_array,
        "all tasks of the array write into one file.",
        "%A_%a in the name",
    ),
    Rule(
        "mail-to-nobody", "warning", mail_to_nobody,
        "without --mail-type Slurm sends no mail to anybody.",
        "--mail-type=END,FAIL",
    ),
    Rule(
        "short-notice", "warning", short_notice,
        "Slurm looks at time limits twice a minute: a signal of less than a minute's notice leaves no time for a "
        "checkpoint.",
        "--signal=B:USR1@300, and longer than one checkpoint takes",
    ),
    Rule(
        "one-core-by-default", "warning", one_core_by_default,
        "a task gets one core unless more are asked for (sites may have another default): all ranks of the launcher, "
        "and their data loading, share it.",
        "--cpus-per-task (the cores of a node, with one task a node)",
    ),
    Rule(
        "old-option", "error", old_option,
        "--workdir was taken out in Slurm 17.11: sbatch refuses it.",
        "--chdir",
    ),
)  # fmt: skip
