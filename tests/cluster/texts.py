"""Texts in the formats of the site's commands, written for these tests."""

from __future__ import annotations

from collections.abc import Sequence

LEGEND = "\nLegend:\n\n  X    = Self\n  NV#  = Connection traversing a bonded set of # NVLinks\n"


def topo(
    matrix: Sequence[Sequence[str]], nics: Sequence[str] = (), *, tails: Sequence[str] = (), tabs: bool = True
) -> str:
    """Return `nvidia-smi topo -m` of a matrix; its first rows and columns are GPUs, its last ones are `nics`."""
    num_gpus = len(matrix[0]) - len(nics)
    names = [f"GPU{i}" for i in range(num_gpus)] + list(nics)
    joiner = "\t" if tabs else "   "
    tails = tails or ["0-23" + joiner + "0" + joiner + "N/A"] * num_gpus
    lines = [joiner.join(["", *names, "CPU Affinity", "NUMA Affinity", "GPU NUMA ID"])]
    for i, row in enumerate(matrix):
        cells = [" X " if cell == "X" else cell for cell in row]
        lines.append(joiner.join([names[i], *cells, *([tails[i]] if i < num_gpus else [])]))
    return "\n".join(lines) + "\n" + LEGEND


def uniform(num_gpus: int, link: str) -> list[list[str]]:
    """The matrix in which every two GPUs have the same link."""
    return [["X" if a == b else link for b in range(num_gpus)] for a in range(num_gpus)]


def blocks(*domains: Sequence[int], link: str, across: str = "SYS") -> list[list[str]]:
    """The matrix in which GPUs of one domain have `link` and others `across`."""
    num_gpus = sum(map(len, domains))
    where = {gpu: i for i, domain in enumerate(domains) for gpu in domain}
    return [
        ["X" if a == b else link if where[a] == where[b] else across for b in range(num_gpus)] for a in range(num_gpus)
    ]


MIG_LIST = """\
GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-00000000-0000-0000-0000-000000000000)
  MIG 3g.40gb     Device  0: (UUID: MIG-00000000-0000-0000-0000-000000000010)
  MIG 3g.40gb     Device  1: (UUID: MIG-00000000-0000-0000-0000-000000000011)
GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-00000000-0000-0000-0000-000000000001)
  MIG 3g.40gb     Device  0: (UUID: MIG-00000000-0000-0000-0000-000000000020)
  MIG 3g.40gb     Device  1: (UUID: MIG-00000000-0000-0000-0000-000000000021)
"""

MIG_PROFILES = """\
+-----------------------------------------------------------------------------+
| GPU instance profiles:                                                      |
| GPU   Name             ID    Instances   Memory     P2P    SM    DEC   ENC  |
|                              Free/Total   GiB              CE    JPEG  OFA  |
|=============================================================================|
|   0  MIG 1g.10gb       19     7/7        9.50       No     14     0     0   |
|                                                             1     0     0   |
+-----------------------------------------------------------------------------+
|   0  MIG 3g.40gb        9     0/2        39.25      No     42     2     0   |
|                                                             3     0     0   |
+-----------------------------------------------------------------------------+
"""

MIG_INSTANCES = """\
+----------------------------------------------------+
| GPU instances:                                     |
| GPU   Name          Profile  Instance   Placement  |
|                       ID       ID       Start:Size |
|====================================================|
|   0  MIG 1g.10gb      19        7          0:1     |
+----------------------------------------------------+
|   0  MIG 3g.40gb       9        2          4:4     |
+----------------------------------------------------+
"""

NCCL_XML = """\
<!-- two GPUs and one NIC behind each switch -->
<system version="1">
  <cpu numaid="0" affinity="0000ffff" arch="x86_64">
    <pci busid="ffff:ff:01.0" class="0x060400" link_speed="16 GT/s" link_width="16">
      <pci busid="0000:01:00.0" class="0x030200" link_speed="16 GT/s" link_width="16"/>
      <pci busid="0000:02:00.0" class="0x030200" link_speed="16 GT/s" link_width="16"/>
      <pci busid="0000:03:00.0" class="0x020700" link_speed="16 GT/s" link_width="16"/>
    </pci>
  </cpu>
  <cpu numaid="1" affinity="ffff0000" arch="x86_64">
    <pci busid="ffff:ff:02.0" class="0x060400" link_speed="16 GT/s" link_width="16">
      <pci busid="0000:04:00.0" class="0x030200" link_speed="16 GT/s" link_width="16"/>
      <pci busid="0000:05:00.0" class="0x030200" link_speed="16 GT/s" link_width="16"/>
      <pci busid="0000:06:00.0" class="0x020700" link_speed="16 GT/s" link_width="16"/>
    </pci>
  </cpu>
</system>
"""

SLURM_TREE = """\
# two leaves under one spine
SwitchName=leaf1 Nodes=node[01-02],node05
SwitchName=leaf2 nodes=node[03-04]
SwitchName=spine Switches=leaf[1-2]
"""

SLURM_SHOWN = """\
SwitchName=leaf1 Level=0 LinkSpeed=1 Nodes=node[01-02]
SwitchName=leaf2 Level=0 LinkSpeed=1 Nodes=node[03-04]
SwitchName=spine Level=1 LinkSpeed=1 Nodes=node[01-04] Switches=leaf[1-2]
"""

SLURM_NODE = (
    "NodeName=dgx[1-4] Arch=x86_64 CoresPerSocket=64 CPUAlloc=0 CPUTot=256 Gres=gpu:a100:8(S:0-1) "
    "NodeAddr=dgx[1-4] RealMemory=2000000 Sockets=2 State=IDLE ThreadsPerCore=2 Reason=a few words [root@now]\n"
)

MIG_PLACES = """\
GPU  0 Profile ID 19 Placements: {0,1,2,3,4,5,6}:1
GPU  0 Profile ID  9 Placements: {0,4}:4
GPU  0 Profile ID  0 Placement : {0}:8
"""

MIG_PARTED = """\
version: v1
mig-configs:
  off:
    - devices: all
      mig-enabled: false
  mixed:
    - device-filter: ["0x20B210DE"]
      devices: [0, 1]
      mig-enabled: true
      mig-devices: {"1g.10gb": 4, "3g.40gb": 1}
"""

SLURM_YAML = """\
- topology: all
  cluster_default: true
  tree:
    switches:
      - switch: spine
        children: s[1-2]
      - switch: s1
        nodes: node[01-02]
      - switch: s2
        nodes: node[03-04]
- topology: racks
  block:
    block_sizes: [2]
    blocks: [{block: b1, nodes: "node[01-02]"}]
"""

GRES_CONF = """\
AutoDetect=off
NodeName=n[1-4] Name=gpu Type=a100 File=/dev/nvidia[0-3] Cores=0-31
NodeName=n[1-4] Name=gpu Type=a100 File=/dev/nvidia[4-7] Cores=32-63
Name=shard Count=4
"""

COLLECTED = """\
host:n7
/proc/meminfo:MemTotal:       1056210304 kB
/proc/meminfo:MemFree:        1000000000 kB
/sys/class/infiniband/mlx5_0/ports/1/rate:200 Gb/sec (4X HDR)
/sys/class/infiniband/mlx5_0/ports/1/state:4: ACTIVE
/sys/class/infiniband/mlx5_0/ports/1/link_layer:InfiniBand
/sys/class/infiniband/mlx5_1/ports/1/rate:25 Gb/sec (1X EDR)
/sys/class/infiniband/mlx5_1/ports/1/state:4: ACTIVE
/sys/class/infiniband/mlx5_1/ports/1/link_layer:Ethernet
/sys/class/net/eth0/speed:25000
/sys/class/net/eth0/operstate:up
/sys/devices/system/cpu/cpu0/topology/physical_package_id:0
/sys/devices/system/cpu/cpu0/topology/core_id:0
/sys/devices/system/cpu/cpu1/topology/physical_package_id:1
/sys/devices/system/cpu/cpu1/topology/core_id:0
/sys/devices/system/cpu/cpu2/topology/physical_package_id:0
/sys/devices/system/cpu/cpu2/topology/core_id:0
/sys/class/infiniband/mlx5_0/device:0000:12:00.0
"""


def query(count: int, **cells: str) -> str:
    """What `nvidia-smi --query-gpu` prints for `count` healthy A100s; `cells` overrides columns of the last one."""
    healthy = {
        "name": "NVIDIA A100-SXM4-80GB", "uuid": "GPU-0", "memory": "81920", "driver": "550.54.15", "mig": "Disabled",
        "ecc": "0", "retired": "No", "remap": "0", "clock": "1410", "max_clock": "1410",
        "throttle": "0x0000000000000000",
    }  # fmt: skip
    rows = [{"index": str(i), **healthy, "uuid": f"GPU-{i}", **(cells if i == count - 1 else {})} for i in range(count)]
    order = ("index", *healthy)
    return "\n".join(", ".join(row[key] for key in order) for row in rows) + "\n"


def smi_log(count: int, *, name: str = "NVIDIA A100-SXM4-80GB", lanes: int = 16) -> str:
    """`nvidia-smi -q` of some GPUs, shortened; the last one has `lanes` PCIe lanes."""
    gpus = "".join(
        f"GPU 00000000:{7 + i:02X}:00.0\n"
        f"    Product Name                          : {name}\n"
        f"    GPU UUID                              : GPU-{i}\n"
        "    MIG Mode\n"
        "        Current                           : Disabled\n"
        "    PCI\n"
        "        Device Id                         : 0x20B210DE\n"
        "        GPU Link Info\n"
        "            Link Width\n"
        "                Max                       : 16x\n"
        f"                Current                   : {lanes if i == count - 1 else 16}x\n"
        "    FB Memory Usage\n"
        "        Total                             : 81920 MiB\n"
        for i in range(count)
    )
    return f"\n==============NVSMI LOG==============\n\nAttached GPUs                             : {count}\n{gpus}"


LSPCI = """\
01:00.0 3D controller: NVIDIA Corporation GA100 [A100 SXM4 40GB] (rev a1)
\tNUMA node: 3
\tCapabilities: [60] Express (v2) Endpoint, MSI 00
\t\tLnkCap:\tPort #0, Speed 16GT/s, Width x16, ASPM not supported
\t\tLnkSta:\tSpeed 2.5GT/s (downgraded), Width x16
41:00.0 3D controller [0302]: NVIDIA Corporation GA100 [A100 SXM4 40GB] [10de:20b0] (rev a1)
0000:61:00.0 Infiniband controller [0207]: Mellanox Technologies MT28908 Family [ConnectX-6] [15b3:101b]
\t\tLnkCap:\tPort #0, Speed 16GT/s, Width x16, ASPM not supported
\t\tLnkSta:\tSpeed 16GT/s, Width x8 (downgraded)
62:00.0 VGA compatible controller: ASPEED Technology, Inc. ASPEED Graphics Family (rev 41)
"""


def ibnetdiscover(hosts: int, *, rails: int = 2, per_leaf: int = 4, rate: str = "4xHDR") -> str:
    """A rail-optimised fabric: `rails` leaves to each `per_leaf` hosts, each with two links to one spine."""
    lines = ["# Topology file", ""]
    for unit in range(0, hosts, per_leaf):
        for rail in range(rails):
            leaf = f"{unit:04x}{rail:04x}"
            lines += [
                f"switchguid=0x{leaf}({leaf})",
                f'Switch\t41 "S-{leaf}"\t\t# "MF0;leaf-{unit}-{rail}:MQM8700/U1" base',
            ]
            for port, host in enumerate(range(unit, min(unit + per_leaf, hosts)), 1):
                guid = f"{host:08x}0000{rail:04x}"
                lines.append(f'[{port}]\t"H-{guid}"[1]({guid}) \t\t# "n{host} mlx5_{rail}" lid {port} {rate}')
            lines += [f'[{20 + i}]\t"S-00ff"[{i}]\t\t# "MF0;spine:MQM8700/U1" lid 9 4xHDR' for i in range(2)]
    return "\n".join([*lines, ""])
