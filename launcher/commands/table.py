"""All commands: module and help text of each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CommandEntry:
    """A command: its module and the text that `--help` shows."""

    module: str
    help: str
    usage: str
    keys: str = ""  # the command's own keys, in addition to those of the configuration


PLAN_KEYS = """\
keys of its own:
  top=10               how many plans to show
  why_not=tp=4,pp=16   why this layout is not the first choice
  from=FILE            estimate what another tool's file runs, and compare it with the best plan for that tool
  sizes=8,16,32        compare numbers of GPUs; -m cluster=a,b compares clusters
  tokens=300e9         days, GPU-hours and cost of this many training tokens
  save=FILE            write the first plan to this file; run_dir=FOLDER: for a run in that folder
  plan=FILE            explain an existing plan
  output=json          one JSON document on standard output
every layout key that is not pinned is searched: layout.tp=8 pins one, layout.tp=auto unpins it"""

LINT_KEYS = """\
it reads the script and runs nothing, so it cannot see:
  the contents of sourced files, what modules set, what $(commands) print
  which branch of if and case is taken, how often a loop runs, arguments of eval and functions
  variables from sbatch's command line or the shell (SBATCH_*, --export), and options given there
  what the program does with its arguments, and the site's own defaults (cores, memory, partitions)
a rule that needs any of these stays silent. Known variables are substituted, four levels deep.
cluster=NAME             GPUs per node, if the script does not say
output=json              one JSON document on standard output
exit code: 1 if an error was found, 0 with warnings or nothing"""

COMMANDS = {
    "plan": CommandEntry("plan", "rank the layouts of a model on a cluster and explain them", "[overrides]", PLAN_KEYS),
    "run": CommandEntry("run", "plan, then run here: a recipe, or your own script=train.py", "[overrides] [-- args]"),
    "submit": CommandEntry("submit", "plan, then sbatch; dry_run=true prints what would run", "[overrides] [-- args]"),
    "discover": CommandEntry(
        "discover",
        "write configs/cluster/<name>.yaml from this node, or from command output of others",
        "[name=NAME] [from=FILE,…]",
    ),
    "check": CommandEntry("check", "preflight: GPUs, links, NCCL environment, disk, names", "[overrides]"),
    "status": CommandEntry("status", "state of a run", "RUN"),
    "logs": CommandEntry("logs", "the logs of a run", "RUN [--rank N] [--follow]"),
    "cancel": CommandEntry("cancel", "stop a run", "RUN"),
    "warm": CommandEntry(
        "warm", "keep torch imported, so that the next run starts at once", "[overrides] | stop | status"
    ),
    "export": CommandEntry(
        "export", "translate the plan for another tool", "RUN|plan=FILE|overrides to=TOOL [out=FOLDER]"
    ),
    "report": CommandEntry("report", "one HTML page about a run or a plan", "RUN|plan=FILE|overrides"),
    "keys": CommandEntry("keys", "every configuration key: default, rule, meaning", "[PREFIX|WORD]"),
    "compare": CommandEntry(
        "compare", "two runs, plans or measurements against each other", "A B [fail_over=5%] [output=json]"
    ),
    "lint": CommandEntry("lint", "known traps in an existing batch script", "SCRIPT… [cluster=NAME]", LINT_KEYS),
    "completion": CommandEntry("completion", "a shell completion script", "bash"),
}
