"""Gloo between CPU ranks where nothing was measured: what a call costs by operation and group."""

from __future__ import annotations

from launcher.cluster.measured import Curve

# Core seconds of an all-reduce's call, a rank's, with eight ranks on two cores and all groups at once: 1 KiB takes 3.0,
# 4.7 and 9.8 ms in groups of 2, 4 and 8, a rank's own share is a quarter (recipe collectives).
CALL_S = {2: 0.66e-3, 4: 1.0e-3, 8: 2.3e-3}
CALL_SHARE = {"all_reduce": 1.0, "all_gather": 0.55, "reduce_scatter": 1.1, "all_to_all": 0.27}  # the others', of it
SEND_S = 0.15e-3  # to send and to receive one message, whatever the group
BYTE_S = 1 / 0.8e9  # through loopback, and added up
SIZES = (1024, 16384, 262144, 4194304)


def gloo_curves() -> tuple[Curve, ...]:
    """Core seconds of gloo's collectives over loopback, a rank's: what a call costs grows with the group."""
    return tuple(_curve(operation, ranks) for operation in (*CALL_SHARE, "send_recv") for ranks in CALL_S)


def _curve(operation: str, ranks: int) -> Curve:
    moved = 1.0 if operation == "send_recv" else (1 + (operation == "all_reduce")) * (ranks - 1) / ranks
    call = SEND_S if operation == "send_recv" else CALL_SHARE[operation] * CALL_S[ranks]
    seconds = tuple(call + moved * size * BYTE_S for size in SIZES)
    return Curve(
        operation=operation, link="pcie", ranks=ranks, per_node=ranks, groups=8 // ranks, sizes=SIZES, seconds=seconds
    )  # fmt: skip
