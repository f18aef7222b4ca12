"""Texts in the formats of the site's commands, written for these tests."""

from __future__ import annotations

from collections.abc import Sequence

LEGEND = "\nLegend:\n\n  X    = Self\n  NV#  = Connection traversing a bonded set of # NVLinks\n"


def topo(
    matrix: Sequence[Sequence[str]], nics: Sequence[str] = (), *, tails: Sequence[str] = (), tabs: bool = True
) -> str:
    """`nvidia-smi topo -m` of a matrix whose first rows and columns are GPUs and whose last ones are `nics`."""
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
