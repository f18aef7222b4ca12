"""Gloo between CPU ranks where nothing was measured: what a call costs by operation and group."""

from __future__ import annotations

from launcher.cluster.measured import Curve

# Core seconds of a call of all-reduce, a rank's, back to back: medians with eight ranks on two EPYC cores, all groups
# at once (recipe collectives). What a call costs more within a step is the engine's call_s (cores.py).
CALL_S = {2: 0.2e-3, 4: 0.7e-3, 8: 2.0e-3}
CALL_SHARE = {"all_reduce": 1.0, "all_gather": 0.65, "reduce_scatter": 1.15, "all_to_all": 0.25}  # the others', of it
SEND_S = 0.1e-3  # to send and to receive one message, whatever the group
BYTE_S = 1 / 2e9  # through loopback, and added up
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
