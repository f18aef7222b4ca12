"""An export as a folder: the tool's files, the start script, the rank file, the plan, a README of what is missing."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from launcher.errors import InputError
from launcher.export.ranks import HOSTS_FILE, RANKS_FILE, START_FILE
from launcher.export.target import Export, Target
from launcher.planner.record import Plan, write_plan
from launcher.run.folder import PLAN_NAME, plan_file
from launcher.units import format_bytes, format_seconds

README_FILE = "README.md"
ABOUT = {
    START_FILE: "starts the ranks of the node that it runs on",
    RANKS_FILE: "every rank with its node, GPU and coordinate",
    HOSTS_FILE: "the hosts, in the plan's order",
    PLAN_NAME: "the plan itself: `launcher plan plan=.` explains it",
}


def write_folder(plan: Plan, target: Target, export: Export, folder: Path) -> None:
    """Write the folder, complete or not at all; raises InputError where it has something in it or cannot be written."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"out={folder} exists and is not an empty folder: give another, or remove it")
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        for name, text in {**export.files, README_FILE: readme(plan, target, export)}.items():
            (temporary / name).write_text(text, encoding="utf-8")
            (temporary / name).chmod(0o755 if name.endswith(".sh") else 0o644)
        write_plan(plan, plan_file(temporary))
        temporary.chmod(0o755)
        temporary.replace(folder)
    except OSError as error:
        raise InputError(f"cannot write out={folder} ({error.strerror}): give another folder") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def readme(plan: Plan, target: Target, export: Export) -> str:
    """Describe the folder, how to start it, and what the tool cannot express."""
    parts = [
        f"# {plan.job.model.name} as {plan.layout.brief()}, for {target.tool}",
        _about(plan),
        "## Start",
        _start(plan, export),
        "## Files",
        _files(target, export),
        f"## What {target.tool} has no words for",
        "\n".join(f"- {line}" for line in export.missing) or "Nothing: the files say all that the plan says.",
        "## Read from",
        "\n".join(f"- {source}" for source in target.sources),
    ]
    return "\n\n".join(parts) + "\n"


def _about(plan: Plan) -> str:
    cluster, estimate = plan.job.cluster, plan.estimate
    lines = [f"{plan.layout.world_size} ranks on {plan.placement.num_nodes} × {cluster.name}."]
    if estimate.get("step_time_s"):
        lines.append(f"Estimate: {format_seconds(estimate['step_time_s'])} a step,")
        lines.append(f"{format_bytes(estimate.get('memory_bytes_per_gpu') or 0)} a GPU.")
    return " ".join(lines)


def _start(plan: Plan, export: Export) -> str:
    nodes = plan.placement.num_nodes
    if nodes == 1 or not export.start.startswith("bash"):
        return f"```bash\n{export.start}\n```"
    return (
        f"On each of the {nodes} nodes, with NODE_RANK and MASTER_ADDR set where the script asks for them:\n\n"
        f"```bash\n{export.start}\n```\n\n"
        f"Under Slurm: `srun --nodes={nodes} --ntasks-per-node=1 {export.start}`"
    )


def _files(target: Target, export: Export) -> str:
    names = sorted({*export.files, PLAN_NAME})
    return "\n".join(f"- `{name}`: {ABOUT.get(name, f'for {target.tool}')}" for name in names)
