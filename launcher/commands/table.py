"""Every command: the module it is in, and the words that help shows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CommandEntry:
    """A command: where its code is, and the words that `--help` shows."""

    module: str
    help: str
    usage: str
    keys: str = ""  # of the command itself, besides the configuration's


PLAN_KEYS = """\
keys of its own:
  top=10               how many plans to show
  why_not=tp=4,pp=16   why this layout is not the first choice
  from=FILE            what another tool's file runs today, the best that this tool can, and the difference
  sizes=8,16,32        compare numbers of GPUs; -m cluster=a,b compares clusters
  tokens=300e9         days, GPU-hours and cost of so many training tokens
  save=FILE            write the first plan there; run_dir=FOLDER: for a run in that folder
  plan=FILE            explain a plan that is there already
  output=json          one JSON document on standard output
every layout key that is not pinned is searched: layout.tp=8 pins one, layout.tp=auto sets it free"""

LINT_KEYS = """\
it reads the script and runs nothing, so that it cannot see:
  what files hold that the script sources, what modules set, what $(commands) print
  which branch of if and case is taken, how often a loop turns, what eval and functions are called with
  variables from sbatch's command line or the shell (SBATCH_*, --export), and options given there
  what the program does with its arguments, and the site's own defaults (cores, memory, partitions)
a rule that would need it keeps silent. Known values of variables are put in, four levels deep.
cluster=NAME             GPUs per node, where the script does not say
output=json              one JSON document on standard output
exit code: 1 where an error was found, 0 with warnings or nothing"""

COMMANDS = {
    "plan": CommandEntry("plan", "rank the layouts of a model on a cluster and explain them", "[overrides]", PLAN_KEYS),
    "run": CommandEntry(
        "run", "plan, then run here: a recipe, or script=train.py of your own", "[overrides] [-- args]"
    ),
    "submit": CommandEntry("submit", "plan, then sbatch; dry_run=true prints what would run", "[overrides] [-- args]"),
    "discover": CommandEntry(
        "discover",
        "write configs/cluster/<name>.yaml from this node, or from texts of others",
        "[name=NAME] [from=FILE,…]",
    ),
    "check": CommandEntry("check", "preflight: GPUs, links, NCCL environment, disk, names", "[overrides]"),
    "status": CommandEntry("status", "what a run is doing", "RUN"),
    "logs": CommandEntry("logs", "the logs of a run", "RUN [--rank N] [--follow]"),
    "cancel": CommandEntry("cancel", "stop a run", "RUN"),
    "warm": CommandEntry(
        "warm", "keep torch imported, so that the next run starts at once", "[overrides] | stop | status"
    ),
    "export": CommandEntry(
        "export", "the plan in another tool's terms", "RUN|plan=FILE|overrides to=TOOL [out=FOLDER]"
    ),
    "report": CommandEntry("report", "one HTML page about a run or a plan", "RUN|plan=FILE|overrides"),
    "keys": CommandEntry("keys", "every configuration key: default, rule, meaning", "[PREFIX|WORD]"),
    "compare": CommandEntry(
        "compare", "two runs, plans or measurements against each other", "A B [fail_over=5%] [output=json]"
    ),
    "lint": CommandEntry("lint", "known traps in an existing batch script", "SCRIPT… [cluster=NAME]", LINT_KEYS),
    "completion": CommandEntry("completion", "a shell completion script", "bash"),
}
