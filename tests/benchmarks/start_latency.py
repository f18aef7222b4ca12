"""Time from command to the first all-reduce finished on all ranks: ours against torchrun, side by side.

    python tests/benchmarks/start_latency.py [--ranks 2 4 8] [--repeats 5] [--warm]

Both start the same script, interleaved, on this machine. Reported for each number of ranks: medians of wall time to
the last rank's first all-reduce, of the CPU seconds of all processes, and of the proportional set size (PSS) of all
processes while every rank is there. `ratio` is ours over torchrun's; the last line on stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
SCRIPT = HERE / "first_all_reduce.py"
LAUNCH = HERE.parent / "launch"
GOALS = {"wall_s": {2: 0.6, 8: 0.2}, "cpu_s": {8: 0.15}, "pss_mib": {8: 0.25}}
WARM_GOAL = 0.1


def commands(ranks: int, folder: Path, kinds: list[str]) -> dict[str, list[str]]:
    """The command of each way to start; `ours` is `launcher run` with everything that it does before the ranks."""
    python = sys.executable
    run = [
        python, "-P", "-m", "launcher.cli", "run", f"script={SCRIPT}", f"launch.nproc_per_node={ranks}",
    ]  # fmt: skip
    every = {
        "torchrun": [python, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", str(SCRIPT)],
        "ours": [*run, f"run_dir={folder}/ours", "launch.warm=never", "--"],
        "agent only": [python, str(LAUNCH / "driver.py"), f"{folder}/agent", str(SCRIPT), str(ranks), "{}"],
        "warm": [*run, f"run_dir={folder}/warm", "launch.warm=auto", "--"],
    }
    return {kind: [*every[kind], f"dir={folder}"] for kind in kinds}


def measure(command: list[str], folder: Path, ranks: int) -> dict[str, float]:
    """One start. The ranks leave a mark each and wait until their memory is read."""
    for mark in folder.glob("mark-*"):
        mark.unlink()
    (folder / "go").unlink(missing_ok=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.time()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=folder)
    while len(list(folder.glob("mark-*"))) < ranks:
        if process.poll() is not None or time.time() - began > 300:
            process.kill()
            raise SystemExit(f"{command} failed: {process.communicate()[1].decode()[-2000:]}")
        time.sleep(0.01)
    marks = [json.loads(mark.read_text()) for mark in folder.glob("mark-*")]
    pss = sum(pss_mib(pid) for pid in family([m["pid"] for m in marks], process.pid))
    (folder / "go").touch()
    error = process.communicate()[1].decode()
    if process.returncode or "warm server is not used" in error:
        raise SystemExit(f"{command} failed: {error[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": max(m["at"] for m in marks) - began, "cpu_s": cpu, "pss_mib": pss}


def family(ranks: list[int], command: int) -> set[int]:
    """The ranks, the command, and all processes between them."""
    found = {command}
    for rank in ranks:
        pid = rank
        while pid > 1 and pid not in found:
            found.add(pid)
            stat = Path(f"/proc/{pid}/stat").read_text()
            pid = int(stat[stat.rindex(")") + 2 :].split()[1])
    return found


def pss_mib(pid: int) -> float:
    """Proportional set size of a process: shared pages count by the number of processes that share them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warm", action="store_true", help="also through a warm fork server, started here")
    arguments = parser.parse_args()
    kinds = ["torchrun", "ours", "agent only", *(["warm"] if arguments.warm else [])]
    if arguments.warm:
        subprocess.run([sys.executable, "-m", "launcher.cli", "warm"], check=True, stdout=subprocess.DEVNULL)
    report = {}
    try:
        for ranks in arguments.ranks:
            report[ranks] = compare(ranks, kinds, arguments.repeats)
    finally:
        if arguments.warm:
            subprocess.run([sys.executable, "-m", "launcher.cli", "warm", "stop"], stdout=subprocess.DEVNULL)
    load = os.getloadavg()[0]
    print(json.dumps({"repeats": arguments.repeats, "load": load, "cores": os.cpu_count(), "ranks": report}))


def compare(ranks: int, kinds: list[str], repeats: int) -> dict[str, dict[str, float]]:
    """Medians of each kind and ratios to torchrun."""
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(repeats):
            for kind, command in commands(ranks, folder, kinds).items():
                runs[kind].append(measure(command, folder, ranks))
    table = {kind: {key: median(run[key] for run in found) for key in found[0]} for kind, found in runs.items()}
    for kind, row in table.items():
        ratios = {f"{key}_ratio": row[key] / table["torchrun"][key] for key in ("wall_s", "cpu_s", "pss_mib")}
        row |= ratios
        goals = [f"{key} goal {goal[ranks]}" for key, goal in GOALS.items() if kind == "ours" and ranks in goal]
        goals += [f"wall_s goal {WARM_GOAL}"] if kind == "warm" else []
        print(
            f"{ranks} ranks  {kind:10}  wall {row['wall_s']:6.2f} s ({row['wall_s_ratio']:.2f})  "
            f"cpu {row['cpu_s']:6.2f} s ({row['cpu_s_ratio']:.2f})  "
            f"PSS {row['pss_mib']:6.0f} MiB ({row['pss_mib_ratio']:.2f})  {', '.join(goals)}",
            file=sys.stderr,
            flush=True,
        )
    return table


if __name__ == "__main__":
    main()
