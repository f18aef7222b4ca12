"""The lead that makes a layout the choice: of layouts that estimates cannot distinguish, the easier one to trust wins.

Handicaps are shares of the step. They are ours, and smaller than what estimates are sure of (`NOISE`): they decide
between layouts that are as good as equal, and no other; but what no published run shows must win clearly (context
parallelism of short sequences, an optimizer on the host). None is below zero, so that a lower bound of the time is also
one of the time with its handicap.
"""

from __future__ import annotations

from math import log2

from launcher.layout import Layout
from launcher.layout.job import Job

# Layouts of one model on one cluster whose estimates differ by less are not distinguished: in 15 published sweeps the
# layout that estimates pick is slower than the best measured one by 0.2 % in the median, and by more than 2 % in five.
NOISE = 0.02
SHORT_SEQUENCE = 16384  # tokens, below which context parallelism is not worth its moving parts
# cp below that must win by more than estimates of published runs err by in the mean (cost/README.md): none has cp.
SHORT_CONTEXT = 0.05
UNMEASURED_SCHEDULE = 0.01  # zero-bubble schedules: no published run that the estimates were held against has one
# An optimizer on the host must win by more than the interval of its estimate: no run was held against one, and the rate
# of a host's memory is assumed (cost/optimizer.py).
OFFLOADED = 0.2
VIRTUAL_STAGES = 0.0005  # for each doubling
ROOMY, FULL = 0.8, 0.01  # of the usable memory: what costs nothing, and the handicap of all of it


def handicap(job: Job, layout: Layout, *, memory_bytes: float, usable_bytes: float) -> float:
    """Share of the step, at least 0, for little room, many moving parts, and what was never measured."""
    found = FULL * max(0.0, memory_bytes / usable_bytes - ROOMY) / (1 - ROOMY)
    found += VIRTUAL_STAGES * log2(layout.virtual_stages)
    if _short_context(job, layout):
        found += SHORT_CONTEXT
    if layout.offload_optimizer:
        found += OFFLOADED
    if layout.schedule == "zb_h1":
        found += UNMEASURED_SCHEDULE
    return found


def _short_context(job: Job, layout: Layout) -> bool:
    return layout.cp > 1 and job.model.seq_len < SHORT_SEQUENCE


def clear_leads(job: Job, layout: Layout) -> dict[str, float]:
    """What in a layout no published run shows, and the share of the step by which it must win."""
    found = (
        {f"context parallelism below {SHORT_SEQUENCE:,} tokens": SHORT_CONTEXT} if _short_context(job, layout) else {}
    )
    return found | ({"an optimizer on the host": OFFLOADED} if layout.offload_optimizer else {})
