"""All commands: module of each, and what its help, completion and configuration flags need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

JOB_GROUPS = ("cluster", "model", "stack", "layout", "train")
RUN_GROUPS = (*JOB_GROUPS, "recipe", "launch", "tracking")
PROGRAM = ("script", "module", "program")


@dataclass(frozen=True)
class CommandEntry:
    """A command: where its code is, what it takes, and the words that `--help` shows.

    `takes` are configuration keys without a group, with their meaning from the class that owns them; `options` are
    words of the command alone, with theirs. `preset` are overrides that it begins with, unless their group is chosen.
    """

    module: str
    help: str
    usage: str
    notes: str = ""  # what else a user should know, at the end
    takes: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    groups: tuple[str, ...] = ()  # of the configuration; empty: it composes none
    preset: tuple[str, ...] = ()
    formats: tuple[str, ...] = ("text", "json")
    sweeps: bool = False  # whether -m makes every combination
    of_run: bool = False  # whether its first word names a run
    examples: Mapping[str, str] = field(default_factory=dict)  # what is typed → what it does


PLAN_NOTES = """\
Every layout key that is not pinned is searched: layout.tp=8 pins one,
layout.tp=auto unpins it. With -m, each combination is one row."""

LINT_NOTES = """\
It reads the script and runs nothing, so it cannot see:
  the contents of sourced files, what modules set, what $(commands) print;
  which branch of if and case is taken, how often a loop runs, arguments of
  eval and functions; variables from sbatch's command line or the shell
  (SBATCH_*, --export), and options given there; what the program does with
  its arguments; the site's own defaults (cores, memory, partitions).
A rule that needs any of these stays silent. Known variables are substituted,
four levels deep. Exit code: 1 if an error was found, 0 with warnings or
nothing."""

RUN_NOTES = """\
The last line of standard output is one short JSON document; result.json in the
run folder has the rest. What follows -- goes to your own program."""

COMPLETION_NOTES = """\
  ~/.bashrc                   eval "$(launcher completion bash)"
  ~/.zshrc (after compinit)   eval "$(launcher completion zsh)"
"""

CALIBRATE_NOTES = """\
It takes run folders of the recipes collectives, gemm, memory, storage and tune,
and what nccl-tests prints or writes (-J). Without any it runs the recipes that
the cluster needs on this machine. What physics forbids is refused."""

TUNE_NOTES = """\
A script's step times are those that it logs with `session`, or prints as
step_time_s=0.5; {tp}, {pp}, {dp}, {cp}, {ep}, {virtual_stages}, {micro_batch},
{zero_stage} and {recompute} in its arguments become the plan's numbers."""

# Options that several commands have, with the same meaning.
SHOW_FILE = {"dry_run=true": "print the file, write nothing"}

COMMANDS = {
    "plan": CommandEntry(
        "plan", "rank the layouts of a model on a cluster and explain them", "[overrides]", PLAN_NOTES,
        takes=("top", "sort", "why_not", "sizes", "mix", "tokens", "days", "tokens_per_parameter", "save", "run_dir",
               "plan", *PROGRAM),
        options={"from=FILE": "estimate what another tool's file runs, next to the best plan for that tool"},
        groups=(*JOB_GROUPS, "recipe", "launch", "tracking"), sweeps=True,
        examples={
            "launcher plan cluster=dgx_a100_80g model=llama2_7b": "the best layouts on one node, and why",
            "launcher plan -m cluster=fly_l40s,fly_a100_80gb model=gpt3_350m tokens=10e9":
                "which of two GPUs trains 10 billion tokens for less",
            "launcher plan cluster=dgx_a100_80g mix=gpt3_125m:9,gpt3_760m:2": "how to cut GPUs by MIG for small jobs",
        },
    ),
    "run": CommandEntry(
        "run", "plan, then run here or on this allocation: a recipe, or your own script=train.py",
        "[overrides] [-- args]", RUN_NOTES,
        takes=(*PROGRAM, "plan", "again", "run_dir", "dry_run"), groups=RUN_GROUPS, sweeps=True,
        examples={
            "launcher run train.steps=20": "train a small GPT on eight CPU ranks",
            "launcher run -m train.lr=1e-4,3e-4 train.steps=20":
                "a sweep here: each job on cores, a GPU or a slice of its own",
            "launcher run script=train.py launch.nproc_per_node=2 -- --lr 3e-4":
                "start your own script as torchrun would",
        },
    ),
    "submit": CommandEntry(
        "submit", "plan, then sbatch; dry_run=true prints what would run", "[overrides] [-- args]",
        takes=(*PROGRAM, "plan", "again", "run_dir", "dry_run"), groups=RUN_GROUPS,
        preset=("launch=slurm",), sweeps=True,
        examples={
            "launcher submit cluster=dgx_a100_80g cluster.num_nodes=4 model=llama2_7b dry_run=true":
                "the batch script and command line, without submitting",
            "launcher submit -m train.lr=1e-4,3e-4 launch.partition=a100 dry_run=true": "one job array for a sweep",
        },
    ),
    "discover": CommandEntry(
        "discover", "write configs/cluster/<name>.yaml from this node, or from command output of others",
        "[name=NAME] [from=FILE,…]",
        options={
            "name=NAME": "what the cluster is called",
            "from=FILE,…": "read texts of other machines: nvidia-smi, NCCL, Slurm, InfiniBand, lspci",
            **SHOW_FILE,
            "force=true": "replace a file that is there",
            "collector=true": "print a shell script that collects the texts on a node",
        },
        examples={
            "launcher discover dry_run=true": "what this machine is, as a cluster file",
            "launcher discover collector=true": "the script to run on a node that you have no Python on",
        },
    ),
    "show": CommandEntry(
        "show", "draw a cluster's node, fabric and links with their numbers; with a plan, its ranks",
        "cluster=NAME [plan=FILE] [out=FILE.svg]",
        takes=("plan",), options={"out=FILE.svg": "a picture, instead of text"}, groups=("cluster",),
        examples={
            "launcher show cluster=dgx_a100_80g cluster.num_nodes=40": "nodes, leaves, spine, and what is assumed",
            "launcher show cluster=aws_p4d out=p4d.svg": "the same as a picture",
        },
    ),
    "calibrate": CommandEntry(
        "calibrate", "write what was measured into configs/cluster/<name>.yaml, or measure it here",
        "[RUN|nccl-tests.txt|.json …] cluster=NAME [name=NAME]", CALIBRATE_NOTES,
        options={
            "name=NAME": "of the file that is written (default: the cluster's, and _measured)",
            "operation=all_reduce": "of a text of nccl-tests that does not name its collective",
            **SHOW_FILE,
            "force=true": "replace a file that another command or a person wrote",
        },
        groups=RUN_GROUPS, of_run=True,
        examples={
            "launcher calibrate cluster=cpu": "measure this machine's CPU ranks, and plan with cluster=cpu_measured",
            "launcher calibrate out.txt cluster=dgx_a100_80g operation=all_reduce":
                "believe what all_reduce_perf printed on such a node",
        },
    ),
    "tune": CommandEntry(
        "tune", "run the most promising plans here, and keep the fastest", "[overrides] [-- args]", TUNE_NOTES,
        takes=(*PROGRAM, "top", "save", "run_dir", "dry_run"),
        options={
            "steps=8": "timed steps of each plan",
            "rounds=3": "try them one after another so many times, and take each plan's median (default 1)",
            "patience=1.5": "a plan that is slower than the best one by this factor is stopped early",
        },
        groups=RUN_GROUPS,
        examples={
            "launcher tune top=3 dry_run=true": "the plans that would be tried",
            "launcher tune top=6 steps=8 save=best.json": "try six, and write the fastest into a file",
        },
    ),
    "check": CommandEntry(
        "check", "preflight: GPUs, links, NCCL environment, disk, names", "[overrides]",
        "Exit code: 1 with a problem that a job would suffer from.",
        takes=("run_dir",), groups=RUN_GROUPS, preset=("launch=slurm",),
        examples={
            "launcher check": "this machine, against the default cluster",
            "launcher check cluster=testcluster output=json": "the findings as one JSON document",
        },
    ),
    "ls": CommandEntry(
        "ls", "the runs of this folder, and your jobs under Slurm, newest first", "",
        "`last` names the newest run of this folder: launcher status last.",
        options={"top=20": "so many runs; 0: all of them"},
        examples={
            "launcher ls": "what has run here, and what runs",
            "launcher ls top=0 output=json": "all of it as one JSON document",
        },
    ),
    "status": CommandEntry(
        "status", "state of a run", "RUN", of_run=True,
        examples={
            "launcher status runs/mine": "the run in a folder",
            "launcher status runs/mine output=json": "its nodes, step and loss as one JSON document",
        },
    ),
    "logs": CommandEntry(
        "logs", "the logs of a run", "RUN [--rank N] [--follow]",
        "output=json gives the lines that there are. It is refused with follow=true: they\nwould have no end.",
        options={"rank=N": "of this rank alone; as --rank N", "follow=true": "until the run ends; as --follow"},
        of_run=True,
        examples={
            "launcher logs runs/mine": "what all ranks said",
            "launcher logs runs/mine --rank 1 --follow": "what rank 1 says, until the run ends",
        },
    ),
    "cancel": CommandEntry(
        "cancel", "stop a run", "RUN", of_run=True,
        examples={
            "launcher cancel runs/mine": "ask the run in a folder to stop, then end it",
            "launcher cancel runs/mine output=json": "the same, answered by one JSON document",
        },
    ),
    "warm": CommandEntry(
        "warm", "keep torch imported, so that the next run starts at once", "[overrides] | stop | status",
        groups=("recipe", "launch"),
        examples={
            "launcher warm status": "whether a server runs; exit code 1 where none does",
            "launcher warm stop": "end the server",
        },
    ),
    "export": CommandEntry(
        "export", "translate the plan for another tool", "RUN|plan=FILE|overrides to=TOOL [out=FOLDER]",
        "Without a plan of yours, the search looks only at what the tool can express.",
        takes=("to", "plan", *PROGRAM, "tokens"), options={"out=FOLDER": "a folder that is ready to start"},
        groups=RUN_GROUPS, of_run=True,
        examples={
            "launcher export cluster=dgx_a100_80g model=llama2_7b to=torchtitan": "the command line for torchtitan",
            "launcher export runs/mine to=torchrun out=started": "the plan of a run, as files",
        },
    ),
    "report": CommandEntry(
        "report", "one HTML page about a run or a plan, or about two", "RUN|RUN RUN|plan=FILE|overrides",
        takes=("plan", *PROGRAM), groups=RUN_GROUPS, of_run=True,
        options={
            "file=FILE": "where the page goes",
            "trace=FILE": "in place of the page: the schedule for ui.perfetto.dev, predicted and as recorded",
        },
        examples={
            "launcher report cluster=dgx_a100_80g model=llama2_7b": "the best plan and its alternatives: report.html",
            "launcher report runs/mine": "a run: what was predicted, what was measured",
            "launcher report runs/mine runs/other": "two runs, or a run and a plan file, next to each other",
            "launcher report runs/mine trace=steps.json": "its schedule, predicted and as the ranks recorded it",
        },
    ),
    "keys": CommandEntry(
        "keys", "every configuration key: default, rule, meaning", "[PREFIX|WORD]",
        formats=("text", "json", "markdown"),
        examples={
            "launcher keys layout": "the keys of a group",
            "launcher keys checkpoint": "the keys that have a word in their name or meaning",
        },
    ),
    "compare": CommandEntry(
        "compare", "two runs, plans or measurements against each other", "A B [fail_over=5%]",
        options={"fail_over=5%": "exit code 1 where B is worse by more than this and than its noise"}, of_run=True,
        examples={
            "launcher compare runs/mine runs/other": "what differs, and whether it is more than noise",
            "launcher compare runs/mine runs/other fail_over=50%": "for CI: exit code 1 where B is slower",
        },
    ),
    "sync": CommandEntry(
        "sync", "upload a run that wandb kept offline", "RUN [dry_run=true]", of_run=True,
        options={"dry_run=true": "print the command, upload nothing"},
        examples={
            "launcher sync runs/mine": "upload it, as one run however often it was restarted",
            "launcher sync runs/mine dry_run=true": "the command that would do it",
        },
    ),
    "new": CommandEntry(
        "new", "files to start a recipe or a cluster from", "recipe|cluster NAME",
        examples={
            "launcher new recipe probe": "recipes/probe.py and configs/recipe/probe.yaml, ready to run",
            "launcher new cluster site": "configs/cluster/site.yaml, ready to plan for",
        },
    ),
    "lint": CommandEntry(
        "lint", "known traps in an existing batch script", "SCRIPT… [cluster=NAME]", LINT_NOTES,
        options={"cluster=NAME": "GPUs per node, where the script does not say"},
        examples={
            "launcher lint train.sbatch": "every known trap, with its reason",
            "launcher lint train.sbatch cluster=dgx_a100_80g output=json": "for CI, and for nodes of eight GPUs",
        },
    ),
    "completion": CommandEntry(
        "completion", "a shell completion script", "bash|zsh|fish",
        COMPLETION_NOTES,
        formats=("text",),
        examples={
            "launcher completion bash": "the script for bash",
            "launcher completion fish > ~/.config/fish/completions/launcher.fish": "for fish",
        },
    ),
}  # fmt: skip
