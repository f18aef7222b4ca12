"""One table of what a launcher costs: start, restart, save and restore, ours against what people use instead.

    python tests/benchmarks/launch_table.py [--ranks 2 8 16] [--repeats 5] [--mib 64]
        [--only start restart checkpoint tokens] [--ways torchrun launcher "launcher, warm" …]

Start: from the command to the first all-reduce of all ranks, cold and through `launcher warm`, against torchrun, and
deepspeed, accelerate launch and mpirun where they are installed; floor: a bare import of torch and forks. Restart: from
kill -9 of a rank to the next finished step, against torchrun. Save and restore: against plain
torch.distributed.checkpoint. Tokens: seconds of a step against a plain loop (dp2) and against DTensor (tp2). All ways
take turns; the figures are medians, and each is also given over the first way's. CPU ranks over gloo, of deepspeed too.
The last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from statistics import median
from typing import Any

import restart_time
from start_latency import SCRIPT, commands, measure

from launcher.rendezvous.config import free_port

HERE = Path(__file__).resolve().parent


def start_commands(ranks: int, folder: Path) -> dict[str, list[str]]:
    """The command of each way to start the script; the first is what others are compared with."""
    ours = commands(ranks, folder, ["torchrun", "ours", "warm"])
    others = {
        "deepspeed": [
            "env", "DS_ACCELERATOR=cpu", sys.executable, "-m", "deepspeed.launcher.runner", f"--num_gpus={ranks}",
        ],
        "accelerate": [
            sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", f"--num_processes={ranks}",
            "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no",
        ],
    }  # fmt: skip
    there = {name: [*words, str(SCRIPT), f"dir={folder}"] for name, words in others.items() if find_spec(name)}
    if which("mpirun"):
        there["mpirun"] = [*mpirun(ranks), sys.executable, str(SCRIPT), f"dir={folder}"]
    floor = [sys.executable, str(HERE / "bare_fork.py"), str(ranks), str(SCRIPT), f"dir={folder}"]
    return {
        "torchrun": ours["torchrun"],
        **there,
        "floor": floor,
        "launcher": ours["ours"],
        "launcher, warm": ours["warm"],
    }


def mpirun(ranks: int) -> list[str]:
    """Open MPI's launcher, with its variables under the names that torch reads."""
    names = {"RANK": "RANK", "LOCAL_RANK": "LOCAL_RANK", "WORLD_SIZE": "SIZE"}
    variables = " ".join(f"{name}=$OMPI_COMM_WORLD_{theirs}" for name, theirs in names.items())
    where = f"MASTER_ADDR=127.0.0.1 MASTER_PORT={free_port('127.0.0.1')}"
    words = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]
    return [*words, "sh", "-c", f'env {variables} {where} "$@"', "sh"]


def starts(ranks: int, repeats: int, only: Sequence[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        every = start_commands(ranks, Path(name))
        ways = {way: every[way] for way in only or every}
        found: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(repeats):
            for way, command in ways.items():
                found[way].append(measure(command, Path(name), ranks)["wall_s"])
    return {way: median(seconds) for way, seconds in found.items()}


def restarts(ranks: int, repeats: int) -> dict[str, float]:
    found: dict[str, list[float]] = {"torchrun": [], "launcher": []}
    for _ in range(repeats):
        for way, seconds in found.items():
            seconds.append(restart_time.measure("ours" if way == "launcher" else way, ranks))
    return {way: median(seconds) for way, seconds in found.items()}


def checkpoints(mib: int, repeats: int) -> dict[str, dict[str, float]]:
    """Save and restore: way → seconds of wall time, by tests/benchmarks/checkpoint_time.py."""
    words = [sys.executable, str(HERE / "checkpoint_time.py"), f"--mib={mib}", f"--repeats={repeats}"]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    rows: dict[str, dict[str, float]] = {}
    for name, figures in json.loads(said.splitlines()[-1]).items():
        what, _, way = name.partition(" ")
        rows.setdefault(what, {})["plain DCP" if way == "plain" else f"launcher, {way}"] = figures["wall_s"]
    return {what: {"plain DCP": row.pop("plain DCP"), **row} for what, row in rows.items()}


def tokens(repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of a step, by train_overhead.py and dtensor_loop.py; each compares blocks of steps in turn."""

    def said(script: str) -> Any:
        words = [sys.executable, str(HERE / script), f"--blocks={2 * repeats}"]
        return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])

    dp, tp = said("train_overhead.py")["step_ms"], said("dtensor_loop.py")["step_ms"]
    return {
        "a step, dp2": {"plain loop": dp["plain"] / 1e3, "launcher": dp["engine"] / 1e3},
        "a step, tp2": {"DTensor": tp["DTensor"] / 1e3, "launcher": tp["engine"] / 1e3},
    }


def show(what: str, row: dict[str, float]) -> None:
    base = next(iter(row.values()))
    cells = [f"{way} {seconds:.3g} s ({seconds / base:.2f} ×)" for way, seconds in row.items()]
    print(f"| {what} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 8, 16])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--mib", type=int, default=64, help="of parameters of each rank, saved and restored")
    parser.add_argument("--only", nargs="+", choices=("start", "restart", "checkpoint", "tokens"), default=[])
    parser.add_argument(
        "--ways", nargs="+", default=[], help="of the starts; the first is what others are compared with"
    )
    arguments = parser.parse_args()
    wanted, table = arguments.only or ["start", "restart", "checkpoint", "tokens"], {}
    warm = [sys.executable, "-P", "-m", "launcher.cli", "warm"]
    if "start" in wanted:
        with tempfile.TemporaryDirectory() as runtime:
            os.environ["XDG_RUNTIME_DIR"] = runtime  # a warm server of its own, that no other command stops or takes
            subprocess.run(warm, check=True, stdout=subprocess.DEVNULL)
            try:
                for ranks in arguments.ranks:
                    table[f"start, {ranks} ranks"] = starts(ranks, arguments.repeats, arguments.ways)
                    show(*list(table.items())[-1])
            finally:
                subprocess.run([*warm, "stop"], stdout=subprocess.DEVNULL)
    if "restart" in wanted:
        table["restart, 2 ranks"] = restarts(2, arguments.repeats)
        show("restart, 2 ranks", table["restart, 2 ranks"])
    if "checkpoint" in wanted:
        for what, row in checkpoints(arguments.mib, arguments.repeats).items():
            table[f"{what}, {arguments.mib} MiB a rank"] = row
            show(f"{what}, {arguments.mib} MiB a rank", row)
    if "tokens" in wanted:
        for what, row in tokens(arguments.repeats).items():
            table[what] = row
            show(what, row)
    print(json.dumps({"repeats": arguments.repeats, "cores": os.cpu_count(), "load": os.getloadavg()[0], "s": table}))


if __name__ == "__main__":
    main()
