"""Rules on how the nodes find each other: master address, port, rendezvous id, NCCL's interfaces."""

from __future__ import annotations

import re
from collections.abc import Iterator

from launcher.lint.finding import Rule, Subject, Trap
from launcher.lint.ports import port_range
from launcher.lint.shell import ShellCommand, assignments, unquote

ADDRESS_NAMES = re.compile(
    r"MASTER(_ADDR(ESS)?|_NODE|_HOST|_IP)?|HEAD_NODE(_IP|_ADDR)?|RDZV_(ENDPOINT|HOST)|HOST_NODE_ADDR", re.I
)
PORT_NAMES = re.compile(r"(MASTER_|RDZV_|MAIN_)?PORT", re.I)
NODE_LISTS = re.compile(r"\$\{?SLURM_(JOB_|STEP_)?NODELIST")
LOOPBACK = re.compile(r"^(localhost|127\.\d+\.\d+\.\d+|::1)(:|$)")
EPHEMERAL = range(32768, 61000)  # Linux: net.ipv4.ip_local_port_range
PORTS = range(1024, 65536)
ADDRESS_FLAGS = ("master-addr", "rdzv-endpoint", "main_process_ip")
PORT_FLAGS = ("master-port", "main_process_port")


def _settings(subject: Subject) -> Iterator[tuple[ShellCommand, str, str]]:
    """Every assignment of the script, also inside its tasks: (command, name, raw value)."""
    for command in (*subject.script.commands, *subject.script.in_tasks):
        for name, value in assignments(command).items():
            yield command, name, value


def _once(places: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Each value where it is first written: a flag often repeats a variable."""
    seen: set[str] = set()
    for line, value in places:
        complete = value.count("(") == value.count(")")  # a flag's value ends at a blank, inside `$(…)` too
        if complete and unquote(value) not in seen:
            seen.add(unquote(value))
            yield line, value


def _addresses(subject: Subject) -> Iterator[tuple[int, str]]:
    """Line and written form of every master address."""
    for command, name, value in _settings(subject):
        if ADDRESS_NAMES.fullmatch(name):
            yield command.line, value
    for start in subject.script.starts:
        for flag in ADDRESS_FLAGS:
            yield from ((start.line, value) for value in [start.flag(flag)] if value)


def compressed_node_list(subject: Subject) -> Iterator[Trap]:
    for line, value in _once(_addresses(subject)):
        if NODE_LISTS.search(value) and not re.search(r"scontrol\s+show\s+hostnames?|nodeset|hostlist", value):
            yield Trap(line, value)


def loopback_master(subject: Subject) -> Iterator[Trap]:
    nodes = subject.script.num_nodes
    for line, value in _once(_addresses(subject)):
        if nodes and nodes > 1 and LOOPBACK.match(unquote(value)):
            yield Trap(line, f"{value} in a job of {nodes} nodes")


def own_name_in_task(subject: Subject) -> Iterator[Trap]:
    for command in subject.script.in_tasks:
        for name, value in assignments(command).items():
            if ADDRESS_NAMES.fullmatch(name) and re.search(r"[(`]\s*hostname\b|SLURMD_NODENAME|\$HOSTNAME", value):
                yield Trap(command.line, f"{name}={value} in every task")


def own_addresses_as_master(subject: Subject) -> Iterator[Trap]:
    for command, name, value in _settings(subject):
        lists = re.search(r"\bhostname\s+(-[iI]|--ip-address|--all-ip-addresses)\b", value)
        picks_one = re.search(r"awk|cut|head|grep|\bread\b|%%", value) and re.search(r"-I|--all-ip-addresses", value)
        if ADDRESS_NAMES.fullmatch(name) and lists and not picks_one:
            yield Trap(command.line, f"{name}={value}")


def falls_back_to_localhost(subject: Subject) -> Iterator[Trap]:
    for number, text in enumerate(subject.script.lines, 1):
        code = text if not text.lstrip().startswith("#") else ""
        if re.search(r"\|\|\s*echo\s+[\"']?(localhost|127\.0\.0\.1)|:-(localhost|127\.0\.0\.1)\}", code):
            yield Trap(number, text)


def _ports(subject: Subject) -> Iterator[tuple[int, str]]:
    for command, name, value in _settings(subject):
        if PORT_NAMES.fullmatch(name):
            yield command.line, unquote(value)
    for start in subject.script.starts:
        values = [start.flag(flag) or "" for flag in PORT_FLAGS]
        values.append((start.flag("rdzv-endpoint") or "").rpartition(":")[2])
        yield from ((start.line, value) for value in values if value)


def _port_ranges(subject: Subject) -> Iterator[tuple[int, str, int, int]]:
    """Return line, written form, lowest and highest of every port that the script determines."""
    for line, value in _once(_ports(subject)):
        if found := port_range(value, subject.script.variables):
            yield line, value, *found


def ephemeral_port(subject: Subject) -> Iterator[Trap]:
    for line, value, low, high in _port_ranges(subject):
        if high >= EPHEMERAL.start and low < EPHEMERAL.stop and high < PORTS.stop and "RANDOM" not in value:
            yield Trap(line, f"port {value}" if low == high else f"{value} gives {low} to {high}")


def impossible_port(subject: Subject) -> Iterator[Trap]:
    for line, value, low, high in _port_ranges(subject):
        if (high >= PORTS.stop or low < PORTS.start) and "RANDOM" not in value:
            yield Trap(line, f"port {value}" if low == high else f"{value} gives {low} to {high}")


def random_port(subject: Subject) -> Iterator[Trap]:
    for line, value in _once(_ports(subject)):
        if re.search(r"\bRANDOM\b", value):
            yield Trap(line, value)


def constant_rendezvous(subject: Subject) -> Iterator[Trap]:
    for start in subject.script.starts:
        value = start.flag("rdzv-id")
        if value and "$" not in value:
            yield Trap(start.line, f"--rdzv-id={value}")


def nccl_on_loopback(subject: Subject) -> Iterator[Trap]:
    for command, name, value in _settings(subject):
        if name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME") and unquote(value).lstrip("=") in ("lo", "docker0"):
            yield Trap(command.line, f"{name}={value}")


def nccl_transport_off(subject: Subject) -> Iterator[Trap]:
    for command, name, value in _settings(subject):
        if (
            name in ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE", "NCCL_SHM_DISABLE", "NCCL_NVLS_DISABLE")
            and unquote(value) == "1"
        ):
            yield Trap(command.line, f"{name}={value}")


RULES = (
    Rule(
        "compressed-node-list", "error", compressed_node_list,
        "$SLURM_JOB_NODELIST is compressed (node[1-4]): cut, sed or awk on it yields no host name on many clusters.",
        'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
    ),
    Rule(
        "loopback-master", "error", loopback_master,
        "localhost is another machine on every node: each node waits for itself.",
        'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
    ),
    Rule(
        "own-name-as-master", "error", own_name_in_task,
        "inside a task it is the name of that task's own node: every node calls itself the master.",
        "set the address once, in the batch script, before srun",
    ),
    Rule(
        "own-addresses-as-master", "error", own_addresses_as_master,
        "hostname -i prints what /etc/hosts says of the name: 127.0.1.1 on many systems, or several addresses with "
        "blanks between them.",
        'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
    ),
    Rule(
        "localhost-fallback", "error", falls_back_to_localhost,
        "when the look-up fails the job does not stop but waits on localhost until its time limit.",
        "let it fail: no fall-back, and set -e",
    ),
    Rule(
        "ephemeral-port", "warning", ephemeral_port,
        "the kernel hands ports 32768 to 60999 out to any outgoing connection: now and then it is taken (EADDRINUSE).",
        "derive it from the job id outside that range: MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))",
    ),
    Rule(
        "impossible-port", "error", impossible_port,
        "ports end at 65535, and those below 1024 are root's: with some job ids nothing can listen there.",
        "MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))",
    ),
    Rule(
        "random-port", "warning", random_port,
        "$RANDOM is 0 to 32767: it may be privileged, taken, or, where tasks expand it, another one on every node.",
        "derive it from the job id: MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))",
    ),
    Rule(
        "constant-rdzv-id", "warning", constant_rendezvous,
        "two jobs with the same rendezvous id and endpoint join each other; a requeued job meets its own leftovers.",
        "--rdzv-id=$SLURM_JOB_ID",
    ),
    Rule(
        "nccl-on-loopback", "error", nccl_on_loopback,
        "NCCL's and gloo's set-up connections cannot leave the node through this interface.",
        "leave it unset, or name the interface of the fabric",
    ),
    Rule(
        "nccl-transport-off", "warning", nccl_transport_off,
        "a left-over of debugging: it turns NVLink, InfiniBand or shared memory off for every collective.",
        "remove it; if the job hangs without it, the fabric is broken and that is what to repair",
    ),
)  # fmt: skip
