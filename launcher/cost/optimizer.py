"""Time of the optimizer's step."""

from __future__ import annotations

from launcher.cost import elementwise
from launcher.cost.constants import Constants
from launcher.cost.device import Device
from launcher.cost.memory import OPTIMIZER_STATES
from launcher.model import Training

# Bytes a second of one host that runs the offloaded optimizer for its GPUs: eight channels of DDR4-3200 a socket, two
# sockets, at 60 %, shared by the node's ranks.
HOST_MEMORY_BYTES_PER_S = 240e9


def widening_s(device: Device, *, parameters: float) -> float:
    """Seconds to copy the gradients of `parameters` to fp32 for their sums, and back."""
    return elementwise.widened_buckets(device.dtype_bytes).backward_bytes * parameters / device.hbm_bytes_per_s


def optimizer_s(
    device: Device,
    constants: Constants,
    training: Training,
    *,
    parameters: float,
    pcie_bytes_per_s: float,
    ranks_per_node: int,
    offloaded: bool,
) -> float:
    """Seconds to update `parameters` (this rank's share).

    Adam in mixed precision reads gradient, master weight and both moments, and writes master, moments and weight: 30
    bytes a parameter; unscaling and the norm read the gradient again. Offloaded, gradients and weights cross PCIe and
    the host's memory is what bounds (Ren et al. 2021, ZeRO-Offload).
    """
    states = OPTIMIZER_STATES[training.optimizer] + 1
    traffic = parameters * (2 * 4 * states + 4 + training.dtype_bytes)
    if offloaded:
        transfer = 2 * training.dtype_bytes * parameters / (pcie_bytes_per_s or HOST_MEMORY_BYTES_PER_S)
        return transfer + traffic * ranks_per_node / HOST_MEMORY_BYTES_PER_S
    return traffic * constants.optimizer_passes / device.hbm_bytes_per_s
