"""Checks of GPUs and NVLink against the cluster file, from the output of nvidia-smi. Pure.

Tested on recorded output; they have not run on a GPU machine yet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import combinations

from launcher.cluster import Node
from launcher.cluster.commands import Output, Runner
from launcher.cluster.nvlink import counts_of
from launcher.cluster.readers_smi import QUERY_COMMAND, GpuState, read_list, read_query
from launcher.cluster.readers_topo import nvlink_domains, read_topo
from launcher.errors import InputError
from launcher.preflight.findings import Finding, Level
from launcher.text import bounded, printable, whole_number
from launcher.units import format_bytes

# nvidia-smi reports whole MiB and ECC uses some: less than this share of the file's memory means another GPU.
MEMORY_SHARE = 0.98
# NVML's clocks throttle reasons, nvml.h: https://docs.nvidia.com/deploy/nvml-api/group__nvmlClocksEventReasons.html
THROTTLES = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
# Lowest driver for a CUDA major version (minor-version compatibility):
# https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/
MIN_DRIVER = {11: (450, 80, 2), 12: (525, 60, 13), 13: (580, 65, 6)}


def gpu_findings(
    node: Node, run: Runner, *, torch_cuda: str | None, ranks: int | None = None, visible: int | None = None
) -> list[Finding]:
    """Run all GPU checks of one node.

    torch_cuda: the CUDA version of torch, None without one. ranks: number of GPUs that the job wants here, by default
    all. visible: number of GPUs that CUDA_VISIBLE_DEVICES shows, None if it is not set.
    """
    wanted = node.num_gpus if ranks is None else ranks
    listed = run(("nvidia-smi", "-L"))
    if listed.text is None:
        return [Finding(Level.PROBLEM, "gpu", f"the cluster file says {node.num_gpus} GPUs, and {listed.problem}")]
    checks: list[Callable[[], list[Finding]]] = [
        lambda: count_findings(node, listed.text or "", wanted=wanted, visible=visible),
        lambda: state_findings(node, run(QUERY_COMMAND), torch_cuda=torch_cuda),
    ]
    if not node.is_mig and node.num_gpus > 1:
        checks += [
            lambda: domain_findings(node, run(("nvidia-smi", "topo", "-m"))),
            lambda: numa_findings(node, run(("nvidia-smi", "topo", "-m"))),
            lambda: nvlink_findings(node, run(("nvidia-smi", "nvlink", "-s"))),
        ]
    findings: list[Finding] = []
    for check in checks:
        try:
            findings += check()
        except InputError as error:
            findings.append(Finding(Level.UNKNOWN, "gpu", str(error)))
    return findings


def count_findings(node: Node, text: str, *, wanted: int, visible: int | None) -> list[Finding]:
    """Check that there are as many GPUs, or slices of the right profile, as the job wants, all visible to it."""
    gpus = read_list(text)
    if visible is not None and visible < wanted:
        message = f"CUDA_VISIBLE_DEVICES shows {visible} GPUs, but the job wants {wanted}"
        return [
            Finding(Level.PROBLEM, "gpu count", f"{message}: ask Slurm for all of them, and unset it in launch.setup")
        ]
    if not node.is_mig:
        return [_compared("gpu count", f"{len(gpus)} GPUs", f"{wanted} GPUs", len(gpus) >= wanted)]
    profile = node.gpu.mig_profile
    slices = [found for gpu in gpus for found in gpu.slices if found.profile == profile]
    return [_compared("gpu count", f"{len(slices)} slices {profile}", f"{wanted}", len(slices) >= wanted)]


def state_findings(node: Node, output: Output, *, torch_cuda: str | None) -> list[Finding]:
    """Check memory, ECC, retired pages, clocks and driver of every GPU."""
    if output.text is None:
        return [Finding(Level.UNKNOWN, "gpu state", f"memory, ECC, clocks and driver are unknown: {output.problem}")]
    states = read_query(output.text)
    findings = [finding for state in states for finding in _state_findings(node, state)]
    findings.append(_driver_finding(states[0].driver, torch_cuda))
    if not any(finding.level > Level.UNKNOWN for finding in findings):
        findings.append(Finding(Level.OK, "gpu state", f"{len(states)} GPUs: memory, ECC, retired pages, clocks"))
    return findings


def _state_findings(node: Node, state: GpuState) -> list[Finding]:
    name, found = f"GPU {state.index} ({printable(state.uuid)})", []
    expected = node.gpu.memory_bytes
    if not node.is_mig and state.memory_bytes is not None and state.memory_bytes < MEMORY_SHARE * expected:
        message = f"{name} has {format_bytes(state.memory_bytes)}, the cluster file says {format_bytes(expected)}"
        found.append(Finding(Level.PROBLEM, "gpu memory", f"{message}: choose the cluster file of this node"))
    if not node.is_mig and state.mig_enabled:
        message = f"{name} is in MIG mode, the cluster file wants it whole: nvidia-smi -i {state.index} -mig 0"
        found.append(Finding(Level.PROBLEM, "gpu mig", message))
    if state.ecc_uncorrected:
        message = f"{name} had {state.ecc_uncorrected} uncorrectable memory errors since its start: reset or drain it"
        found.append(Finding(Level.PROBLEM, "gpu ecc", message))
    if state.remap_failed:
        found.append(Finding(Level.PROBLEM, "gpu ecc", f"{name} could not remap a broken memory row: replace it"))
    if state.pending_retirement:
        found.append(Finding(Level.WARNING, "gpu ecc", f"{name} has memory pages to retire: reset it when it is idle"))
    reasons = [text for bit, text in THROTTLES.items() if (state.throttle_reasons or 0) & bit]
    if reasons:
        clock = f"{state.sm_clock_mhz} of {state.max_sm_clock_mhz} MHz"
        message = f"{name} is slowed down ({', '.join(reasons)}; {clock}): check its cooling and power"
        found.append(Finding(Level.PROBLEM, "gpu clocks", message))
    return found


def _driver_finding(driver: str, torch_cuda: str | None) -> Finding:
    if torch_cuda is None:
        return Finding(Level.PROBLEM, "driver", "the torch installed here is built without CUDA: install a CUDA build")
    lowest, found = MIN_DRIVER.get(whole_number(torch_cuda.partition(".")[0]) or 0), f"driver {printable(driver)}"
    if lowest is None:
        return Finding(Level.UNKNOWN, "driver", f"{found}; the driver that CUDA {torch_cuda} needs is not known here")
    wanted = ".".join(map(str, lowest))
    version = tuple(int(part) for part in re.findall(r"[0-9]{1,9}", driver)[:4])
    return _compared("driver", found, f"{wanted} or later for CUDA {torch_cuda}", version >= lowest)


def domain_findings(node: Node, output: Output) -> list[Finding]:
    """Check that the NVLink domains of `topo -m` match the cluster file."""
    if output.text is None:
        return [Finding(Level.UNKNOWN, "nvlink domains", f"unknown: {output.problem}")]
    topology = read_topo(output.text)
    found, seen = nvlink_domains(topology), len(topology.gpus)
    if node.nvlinks:
        return [_mesh_finding(node.nvlinks, counts_of(topology))]
    if seen < node.num_gpus and len(node.domains) > 1:
        message = f"{seen} of {node.num_gpus} GPUs are shown to this job: which domains they are in is unknown"
        return [Finding(Level.UNKNOWN, "nvlink domains", message)]
    if found is None:
        message = "NVLink joins some of these GPUs only in part, so that they form no domains: describe them yourself"
        return [Finding(Level.PROBLEM, "nvlink domains", message)]
    here = _pairs(found)
    expected = {(a, b) for a, b in _pairs(node.domains) if seen >= node.num_gpus or b < seen}
    missing = sorted(expected - here) if node.nvlink != "none" else []
    if missing:
        pairs = ", ".join(f"{a}-{b}" for a, b in missing[:4])
        message = (
            f"{len(missing)} pairs of GPUs have no NVLink here, and the cluster file says so ({pairs}"
            f"{', …' if len(missing) > 4 else ''}): drain the node, or correct cluster.node.domains"
        )
        return [Finding(Level.PROBLEM, "nvlink domains", message)]
    return [Finding(Level.OK, "nvlink domains", f"{_described(found)}, as the cluster file says")]


def _mesh_finding(described: Sequence[Sequence[int]], found: Sequence[Sequence[int]]) -> Finding:
    """Check NVLinks pair by pair, of the GPUs that are seen."""
    pairs = list(combinations(range(min(len(described), len(found))), 2))
    fewer = [f"{a}-{b} has {found[a][b]} of {described[a][b]}" for a, b in pairs if found[a][b] < described[a][b]]
    if fewer:
        message = (
            f"{len(fewer)} pairs of GPUs have fewer NVLinks than the cluster file says ({', '.join(fewer[:4])}"
            f"{', …' if len(fewer) > 4 else ''}): drain the node, or correct cluster.node.nvlinks"
        )
        return Finding(Level.PROBLEM, "nvlink domains", message)
    joined = sum(1 for a, b in pairs if described[a][b])
    return Finding(Level.OK, "nvlink domains", f"{joined} pairs of GPUs wired to each other, as the cluster file says")


def numa_findings(node: Node, output: Output) -> list[Finding]:
    """Check that the NUMA nodes of `topo -m` are those of the cluster file, where both say them of all GPUs."""
    if node.numa_of_gpu is None or output.text is None:
        return []
    here = [whole_number(numa) for numa in read_topo(output.text).numa]
    if len(here) < node.num_gpus or None in here:
        return [Finding(Level.UNKNOWN, "numa", "nvidia-smi does not say the NUMA node of every GPU here")]
    odd = [
        f"GPU{gpu} is on {found}, not {given}"
        for gpu, (found, given) in enumerate(zip(here, node.numa_of_gpu, strict=False))
        if found != given
    ]
    if odd:
        message = (
            f"NUMA nodes are not those of the cluster file ({', '.join(odd[:4])}): correct cluster.node.numa_of_gpu"
        )
        return [Finding(Level.WARNING, "numa", message)]
    return [Finding(Level.OK, "numa", "the NUMA nodes of the GPUs are those of the cluster file")]


def nvlink_findings(node: Node, output: Output) -> list[Finding]:
    """Check that no link in `nvidia-smi nvlink -s` is down."""
    if node.nvlink == "none":
        return []
    if output.text is None:
        return [Finding(Level.UNKNOWN, "nvlink state", f"unknown: {output.problem}")]
    links = read_nvlink_state(output.text)
    down = {gpu: [link for link, up in states.items() if not up] for gpu, states in links.items()}
    broken = "; ".join(f"GPU {gpu}: link {', '.join(map(str, dead))}" for gpu, dead in down.items() if dead)
    if broken:
        return [Finding(Level.PROBLEM, "nvlink state", f"NVLinks are down ({broken}): drain the node")]
    total = sum(map(len, links.values()))
    return [Finding(Level.OK, "nvlink state", f"{total} links of {len(links)} GPUs are up")]


def read_nvlink_state(text: str) -> dict[int, dict[int, bool]]:
    """Parse GPU → link → whether it is up from `nvidia-smi nvlink -s`; raises InputError for another text."""
    links: dict[int, dict[int, bool]] = {}
    gpu = -1
    for line in bounded(text, "`nvidia-smi nvlink -s`").splitlines():
        if match := re.match(r"GPU ([0-9]{1,4}):", line):
            gpu = int(match[1])
        elif (match := re.match(r"\s+Link ([0-9]{1,4}): (\S{1,80})", line)) and gpu >= 0:
            links.setdefault(gpu, {})[int(match[1])] = "inactive" not in match[2].lower()
    if not links:
        raise InputError("this is not `nvidia-smi nvlink -s`: it names no link")
    return links


def _pairs(domains: Sequence[Sequence[int]]) -> set[tuple[int, int]]:
    return {(a, b) for domain in domains for a in domain for b in domain if a < b}


def _described(domains: Sequence[Sequence[int]]) -> str:
    return f"{len(domains)} of {', '.join(str(n) for n in sorted({len(d) for d in domains}))} GPUs"


def _compared(check: str, found: str, expected: str, good: bool) -> Finding:
    if good:
        return Finding(Level.OK, check, f"{found}; expected: {expected}")
    return Finding(
        Level.PROBLEM, check, f"{found}, expected: {expected}: exclude this node, or correct the cluster file"
    )
