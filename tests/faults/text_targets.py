"""Every reader of a text that is not ours, with texts to damage: those that the tests hold, and written by us."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from shapes import cluster, job, model

from launcher.agent.launch import write_launch
from launcher.agent.settings import LaunchSettings
from launcher.cluster import discover
from launcher.cluster.commands import Output
from launcher.cluster.hostlist import compress_hostlist, expand_hostlist
from launcher.cluster.machine import Machine, read_collected, read_machine
from launcher.cluster.readers_ib import read_ibnetdiscover
from launcher.cluster.readers_mig import read_mig_parted, read_mig_placements
from launcher.cluster.readers_nccl import read_nccl_topology
from launcher.cluster.readers_pci import read_lspci
from launcher.cluster.readers_ports import read_ibstat, read_nccl_log
from launcher.cluster.readers_slurm import read_gpu_gres, read_gres, read_slurm_nodes, read_slurm_topology
from launcher.cluster.readers_smi import (
    QUERY_COMMAND,
    read_list,
    read_mig_instances,
    read_mig_profiles,
    read_query,
    uniform_profile,
)
from launcher.cluster.readers_smi_log import read_query_log
from launcher.cluster.readers_smi_table import read_smi_table
from launcher.cluster.readers_topo import nvlink_domains, nvlink_kind, read_topo
from launcher.layout import Layout
from launcher.lint import lint
from launcher.model.token_file import HEADER, MAGIC, read_header
from launcher.planner import Plan, read_plan, write_plan
from launcher.preflight.gpu import gpu_findings, read_nvlink_state
from launcher.run import ledger, progress, status
from launcher.run.checkpoints import MANIFEST, folder_name, read_manifest, write_manifest
from launcher.run.folder import RunFolder, create_run_folder
from launcher.run.metrics import MetricsFile, StepMetrics, read_steps, summarise_steps
from launcher.run.node_state import NodeState, node_states
from launcher.run.owner import claim, this_process
from launcher.run.provenance import read_provenance, write_provenance
from launcher.run.result import (
    BandwidthResult,
    NodeRates,
    TrainResult,
    is_finished,
    read_bandwidth_result,
    read_train_result,
)
from launcher.run.spans import RankSpans, Span, read_spans
from launcher.slurm import heard, jobstate, life
from launcher.slurm.command import Answer, unreachable
from launcher.slurm.placement import Tree
from launcher.slurm.progress import newest_checkpoint, starts
from launcher.slurm.record import SlurmLaunch, read_slurm_launch, slurm_launch
from launcher.slurm.request import Where, submit_request
from launcher.slurm.settings import SlurmSettings
from launcher.slurm.sweep import SweepMember, results, table, write_sweep
from tests.cluster import texts
from tests.cluster.test_pasted_texts import IBSTAT, NCCL_LOG, TABLE
from tests.faults import user_texts

ROOT = Path(__file__).resolve().parents[2]
LIST, TOPO, LINKS = ("nvidia-smi", "-L"), ("nvidia-smi", "topo", "-m"), ("nvidia-smi", "nvlink", "-s")
NODES, SWITCHES = ("scontrol", "show", "node", "-o"), ("scontrol", "show", "topology")
MACHINE = Machine(cores=8, memory_bytes=2**36, sockets=1, nics=(), interfaces=("lo", "eth0"))


@dataclass(frozen=True)
class Target:
    """A reader: it is given a damaged text, and a folder to put it into where it reads files."""

    name: str
    texts: Sequence[str]
    read: Callable[[str, Path], object]
    is_json: bool = False


def targets(more: Path | None = None) -> list[Target]:
    """Every reader. `more`: a folder of outputs of real machines."""
    user = [Target(*source) for source in user_texts.sources()]
    return [*_machine_targets(_more(more)), *_slurm_targets(_more(more)), *_run_targets(), *user]


def _more(folder: Path | None) -> dict[str, list[str]]:
    """Texts of a folder by the kind that their names begin with."""
    found: dict[str, list[str]] = {}
    kinds = (
        "smi_", "xml_", "slurm_topology", "slurm_conf", "slurm_gres", "mig_L", "mig_lgip_", "mig_lgi_", "mig_lgipp_",
        "mig_parted_examples",
    )  # fmt: skip
    for path in sorted(folder.iterdir()) if folder else ():
        kind = next((kind for kind in kinds if path.name.startswith(kind)), None)
        if kind and path.suffix != ".source":
            found.setdefault(kind, []).append(path.read_text(errors="replace"))
    return found


def _machine_targets(more: dict[str, list[str]]) -> list[Target]:
    listed = "".join(f"GPU {i}: NVIDIA A100-SXM4-80GB (UUID: GPU-{i})\n" for i in range(8))
    lists = [listed, texts.MIG_LIST, *more.get("mig_L", [])]
    matrices = [
        texts.topo(texts.uniform(8, "NV12")),
        texts.topo(texts.blocks((0, 1), (2, 3), link="NV4"), tabs=False),
        *more.get("smi_", []),
    ]
    links = "".join(f"GPU {i}: NVIDIA A100 (UUID: GPU-{i})\n" + "\t Link 0: 25 GB/s\n" * 12 for i in range(8))
    nodes_and_switches = texts.SLURM_NODE + texts.SLURM_TREE + "Name=gpu File=/dev/nvidia[0-7]\n"
    healthy = {LIST: listed, TOPO: matrices[0], QUERY_COMMAND: texts.query(8), LINKS: links}
    scripts = [path.read_text() for path in sorted((ROOT / "tests" / "lint" / "scripts").iterdir())]
    return [
        Target("nvidia-smi -L", lists, lambda text, _: uniform_profile(read_list(text))),
        Target("nvidia-smi query", [texts.query(8)], lambda text, _: read_query(text)),
        Target("mig -lgip", [texts.MIG_PROFILES, *more.get("mig_lgip_", [])], lambda text, _: read_mig_profiles(text)),
        Target("mig -lgi", [texts.MIG_INSTANCES, *more.get("mig_lgi_", [])], lambda text, _: read_mig_instances(text)),
        Target("topo -m", matrices, _topology),
        Target("nvlink -s", [links], lambda text, _: read_nvlink_state(text)),
        Target("nccl xml", [texts.NCCL_XML, *more.get("xml_", [])], _nccl),
        Target("discover", [json.dumps([key, text]) for key, text in _site(healthy).items()], _discover),
        Target("preflight", [json.dumps([key, text]) for key, text in healthy.items()], _preflight),
        Target("nvidia-smi -q", [texts.smi_log(4)], lambda text, _: read_query_log(text)),
        Target("lspci", [texts.LSPCI], lambda text, _: read_lspci(text)),
        Target(
            "mig -lgipp", [texts.MIG_PLACES, *more.get("mig_lgipp_", [])], lambda text, _: read_mig_placements(text)
        ),
        Target("mig-parted", [texts.MIG_PARTED, *more.get("mig_parted_examples", [])], lambda t, _: read_mig_parted(t)),
        Target("ibnetdiscover", [texts.ibnetdiscover(6)], lambda text, _: read_ibnetdiscover(text).leaf_hosts()),
        Target("collected", [texts.COLLECTED], lambda text, _: read_collected(text)),
        Target("discover from", [lists[0] + matrices[0], nodes_and_switches, texts.LSPCI + links], _discover_from),
        Target("proc and sys", ["MemTotal:  65536 kB\n", "200 Gb/sec (4X HDR)\n", "4: ACTIVE\n"], _machine),
        Target("batch script", scripts, lambda text, _: lint(text)),
        Target("token file", [HEADER.pack(MAGIC, 1, 1, 50, 0, 4).decode() + "\1\2\3\4"], _token_file),
    ]


def _site(healthy: dict[tuple[str, ...], str]) -> dict[tuple[str, ...], str]:
    return {**healthy, NODES: texts.SLURM_NODE, SWITCHES: texts.SLURM_SHOWN}


def _discover_from(text: str, folder: Path) -> None:
    file = folder / "text.txt"
    file.write_text(text, errors="replace")
    found = discover.discover_from(discover.texts_of_files([str(file)]), "site")
    assert found.text


def _topology(text: str, folder: Path) -> None:
    found = read_topo(text)
    nvlink_domains(found)
    nvlink_kind(found)
    for gpu in range(len(found.gpus)):
        found.near_nics(gpu)


def _nccl(text: str, folder: Path) -> None:
    found = read_nccl_topology(text)
    for gpu in found.gpus[:8]:
        found.near_nics(gpu)


def _runner(text: str) -> tuple[Callable[[tuple[str, ...]], Output], tuple[str, ...]]:
    """Commands that say what healthy ones do, but one: the text holds its argv and its words."""
    try:
        key, words = json.loads(text)
        broken = tuple(key)
        hash(broken)
    except (ValueError, TypeError, RecursionError):
        broken, words = LIST, text
    healthy = _site({LIST: "GPU 0: A100-SXM4-80GB (UUID: GPU-0)\n"})
    said = {**healthy, broken: words if isinstance(words, str) else text}
    return lambda argv: Output(said[argv]) if argv in said else Output(None, "not installed", installed=False), broken


def _discover(text: str, folder: Path) -> None:
    import yaml

    file = discover.discover("found", run=_runner(text)[0], machine=MACHINE)
    assert all(c.isprintable() or c == "\n" for c in file.text), "control characters in the cluster file"
    assert isinstance(yaml.safe_load(file.text), dict)


def _preflight(text: str, folder: Path) -> None:
    gpu_findings(cluster(nodes=2).node, _runner(text)[0], torch_cuda="12.8")


def _machine(text: str, folder: Path) -> None:
    port = folder / "sys/class/infiniband/mlx5_0/ports/1"
    for file in (folder / "proc/meminfo", port / "rate", port / "state", port / "link_layer"):
        _put(file, text)
    (folder / "sys/class/net/eth0/device").mkdir(parents=True, exist_ok=True)
    _put(folder / "sys/class/net/eth0/speed", text)
    read_machine(folder)


def _token_file(text: str, folder: Path) -> None:
    _put(folder / "tokens", text)
    read_header(folder / "tokens")


def _put(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode(errors="surrogatepass"))
    return file


def _gres_conf(text: str) -> None:
    if "{%" not in text:
        read_gres(text)


def _slurm_targets(more: dict[str, list[str]]) -> list[Target]:
    trees = [texts.SLURM_TREE, texts.SLURM_SHOWN, *more.get("slurm_topology", [])]
    nodes = [texts.SLURM_NODE, *more.get("slurm_conf", [])]
    queue = "".join("RUNNING".ljust(w) if n == "State" else "2".ljust(w) for n, w in life.COLUMNS.items()) + "\n"
    accounts = "CANCELLED by 1000|0:15|4|2026-01-01T00:00:00\n"
    job_record = "JobId=7 JobName=x JobState=RUNNING Reason=None Restarts=0 PreemptTime=2026-11-29T09:18:11 Power=\n"
    complaints = "srun: error: node[2-3]: tasks 1-2: Exited with exit code 2\n1: slurmstepd: couldn't chdir to `/x'\n"
    return [
        Target("topology.conf", trees, _slurm_topology),
        Target("node records", nodes, lambda text, _: read_slurm_nodes(text)),
        Target("topology.yaml", [texts.SLURM_YAML], _slurm_topology),
        Target("gres.conf", [texts.GRES_CONF, *more.get("slurm_gres", [])], lambda text, _: _gres_conf(text)),
        Target(
            "ibstat",
            [IBSTAT.format(i=0, state="Active", rate=200, layer="Ethernet")],
            lambda text, _: read_ibstat(text),
        ),
        Target("NCCL's log", [NCCL_LOG], lambda text, _: read_nccl_log(text)),
        Target("nvidia-smi", [TABLE.format(mig=" 0", memory=81920, state="Disabled")], lambda t, _: read_smi_table(t)),
        Target("gres", ["gpu:a100:8(S:0-1),shard:4", "gpu:8"], lambda text, _: read_gpu_gres(text)),
        Target("hostlist", ["dgx[01-03,07],login1", "a[1-2]b[3-4]", "n1"], _hostlist),
        Target("squeue", [queue], lambda text, _: _life(queue=text)),
        Target("sacct", [accounts], lambda text, _: _life(accounts=text)),
        Target("scontrol show job", [job_record], lambda text, _: _job_state(text)),
        Target("complaint", ["squeue: error: Unable to contact slurm controller (connect failure)\n"], _complaint),
        Target("node check", [_check_lines() + complaints], _heard),
        Target("time limit", ["1-12:00:00", "30", "2:30"], lambda text, _: SlurmSettings.from_config({"time": text})),
    ]


def _slurm_topology(text: str, folder: Path) -> None:
    topology = read_slurm_topology(text)
    hosts = [host for nodes in topology.leaves.values() for host in nodes][:4] or ["node1"]
    _ = topology.nodes_per_leaf, Tree.of(hosts, topology).levels


def _hostlist(text: str, folder: Path) -> None:
    names = expand_hostlist(text)
    assert expand_hostlist(compress_hostlist(names)) == names


def _life(queue: str = "", accounts: str = "") -> None:
    answers = {"squeue": Answer(0, queue, ""), "sacct": Answer(0, accounts, "")}
    with mock.patch.object(life, "ask", lambda argv: answers[argv[0]]):
        str(life.status(life.SubmittedRun("7", None)))
        life.ended_members("7")


def _job_state(text: str) -> None:
    with mock.patch.object(jobstate, "ask", lambda argv: Answer(0, text, "")):
        jobstate.job_state("7")


def _complaint(text: str, folder: Path) -> None:
    reason = Answer(1, "", text).reason
    assert reason.isprintable(), "a complaint that is not fit to be shown"
    unreachable(reason)


def _check_lines() -> str:
    return "".join(f"{i}: {heard.marked(f'node{i + 1}', (), at=1.0)}\n" for i in range(3))


def _heard(text: str, folder: Path) -> None:
    lines = tuple(heard.HeardLine(line, 1.0) for line in text.split("\n"))
    heard.judge(heard.Heard(lines, lines, 1), ("node1", "node2", "node3"))


def _run_targets() -> list[Target]:
    with tempfile.TemporaryDirectory() as name:
        folder = _written_run(Path(name))
        found = {key: file.read_text() for key, file in _files(folder).items()}
    return [Target(key, [found[key]], _reader(key), is_json=True) for key in found]


def _files(folder: RunFolder) -> dict[str, Path]:
    """The documents of a run folder, by the names of their targets."""
    return {
        "plan.json": folder.plan,
        "result.json": folder.result,
        "bandwidth result": folder.inner("bandwidth").result,
        "ledger": folder.ledger,
        "metrics": folder.metrics,
        "node state": folder.node_state(0),
        "launch.json": folder.launch,
        "owner.json": folder.owner,
        "sweep.json": folder.path / "sweep.json",
        "manifest": folder.checkpoints / folder_name(5) / MANIFEST,
        "spans": folder.spans / "step-3-rank-0.json",
        "provenance": folder.provenance,
    }


def _written_run(path: Path) -> RunFolder:
    """A run folder as its own writers make it."""
    folder = create_run_folder(path)
    plan = Plan(job(on=cluster(nodes=2), of=model(), global_batch=64), Layout(tp=8, pp=1, dp=2), {"step_time_s": 1.0},
                ("a reason",), hosts=("node1", "node2"))  # fmt: skip
    write_plan(plan, folder.plan)
    train = TrainResult("gpt", "torch", {"tp": 2}, 8, 0, (5.0, 4.0), 0.1, 0.2, {"data_s": 0.1}, 1.0, 2, 3.0, None)
    folder.result.write_text(json.dumps(train.to_dict(), indent=1))
    inner = create_run_folder(folder.inner("bandwidth").path)
    rates = BandwidthResult("bandwidth", 1024, (NodeRates("node1", 0, 1.0, None),), {"node2": ("between",)}, ("node2",))
    inner.result.write_text(json.dumps(rates.to_dict(), indent=1))
    events = {ledger.START: {"restart": 0, "checkpoint_step": None}, ledger.END: {"code": 1, "why": "x"}}
    for event, details in events.items():
        ledger.append_event(folder.ledger, ledger.JobEvent(event, "7", 1.0, details))
    phases = ledger.Ledger(folder.ledger, node=0, began=0.0)
    phases.note("met")
    phases.note("script", rank=1)
    metrics = MetricsFile(folder.metrics)
    for step in range(1, 6):
        metrics.log(StepMetrics(step, loss=5.0 - step, step_s=0.1, split_s={"data_s": 0.01}))
    metrics.close()
    NodeState(0, "node1", 1, 2.0, "running", 1, 0, 5, "a message", "now", {0: 11}).write(folder)
    slurm = SlurmLaunch(settings=SlurmSettings(time="1:00:00"), clusters={"a100": cluster(nodes=1)})
    write_launch(slurm_launch(LaunchSettings(), slurm), folder.launch)
    claim(folder, this_process())
    write_sweep(folder.path, [SweepMember(("train.lr=1",), plan)])
    write_provenance(folder, ["run"], [])
    RankSpans(0, 3, "node1", 1.0, 0.5, (Span("F", 0.0, 0.1, 0, 0),)).write(_files(folder)["spans"])
    (folder.checkpoints / folder_name(5)).mkdir(parents=True)
    write_manifest(folder.checkpoints / folder_name(5), {"version": 2, "files": {}, "tensors": {}})
    return folder


def _reader(key: str) -> Callable[[str, Path], object]:
    def read(text: str, path: Path) -> object:
        folder = create_run_folder(path / "run")
        files = _files(folder)
        for file in files.values():
            file.unlink(missing_ok=True)
        _put(files[key], text)
        return _USES[key](folder)

    return read


def _use_plan(folder: RunFolder) -> None:
    plan = read_plan(folder.plan)
    _ = plan.to_dict(), plan.layout.brief(), plan.grid.coordinate(0), plan.placement.num_nodes
    submit_request(plan, SlurmSettings(), Where(Path("/run"), Path("/script"), "python"))


def _use_ledger(folder: RunFolder) -> None:
    _ = starts(folder), status.phases(folder), newest_checkpoint(folder)
    _ = ledger.summarise(ledger.read_phases(folder.ledger))


def _use_metrics(folder: RunFolder) -> None:
    steps = read_steps(folder.metrics)
    _ = str(progress.progress(folder)), summarise_steps(steps), [str(step) for step in steps]


def _use_sweep(folder: RunFolder) -> None:
    table(results(folder.path))


_USES: dict[str, Callable[[RunFolder], Any]] = {
    "plan.json": _use_plan,
    "result.json": lambda folder: (is_finished(folder.result), read_train_result(folder.result)),
    "bandwidth result": lambda folder: read_bandwidth_result(folder.inner("bandwidth").result),
    "ledger": _use_ledger,
    "metrics": _use_metrics,
    "node state": node_states,
    "launch.json": read_slurm_launch,
    "owner.json": status.status,
    "sweep.json": _use_sweep,
    "manifest": lambda folder: read_manifest(folder.checkpoints / folder_name(5)),
    "spans": lambda folder: read_spans(folder.spans),
    "provenance": read_provenance,
}


def names(found: Iterable[Target]) -> list[str]:
    return [target.name for target in found]
