"""Which measured numbers an estimate was made with, in a line for its reader."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.cost.curves import used
from launcher.cost.model import CostModel
from launcher.layout import Layout

COLLECTIVES = {
    "tp": ("all_reduce", "all_gather"), "cp": ("all_gather",), "ep": ("all_to_all",), "pp": ("send",),
    "dp": ("all_reduce", "reduce_scatter"),
}  # fmt: skip


def measured_numbers(model: CostModel, layout: Layout) -> Iterator[str]:
    """What was measured of what this layout uses, when, where and how; a checkpoint's time where it is known."""
    cluster = model.job.cluster
    measured, gpu = cluster.measured, cluster.node.gpu
    products = "fp8" if model.job.training.fp8 else model.job.training.dtype
    parts = [f"products in {dtype}" for dtype in gpu.gemm_flops if dtype == products]
    parts += ["attention"] if gpu.attention_flops and model.job.training.dtype != "fp32" else []
    parts += ["memory copy"] if gpu.copy_bytes_per_s is not None else []
    parts += ["the engine's operators"] if measured.engine.layer_s is not None else []
    asked = [
        (operation, model.group(layout, axis))
        for axis, operations in COLLECTIVES.items()
        if layout.degree(axis) > 1
        for operation in operations
    ]
    curves = used(model.fabric, asked) if measured.collectives else ()
    parts += list(dict.fromkeys(f"{c.operation} of {c.ranks} over {c.link}" for c in curves))
    if not measured and not parts:
        return
    when = f" on {measured.date}" if measured.date else ""
    hosts = f" on {', '.join(measured.hosts)}" if measured.hosts else ""
    by = f" by `{measured.command}`" if measured.command else ""
    software = ", ".join(f"{name} {version}" for name, version in measured.versions.items())
    with_what = f" with {software}" if software else ""
    yield f"measured{when}{hosts}{by}{with_what}: {', '.join(parts) or 'nothing that this layout uses'}"
    yield from _checkpoint(model, layout)


def _checkpoint(model: CostModel, layout: Layout) -> Iterator[str]:
    """Seconds to write and to read back weights and optimizer states, at the rate of the nearest number of writers."""
    measured, job = model.job.cluster.measured, model.job
    states = 4.0 * job.model.params * (1 + {"adamw": 2, "adam": 2}.get(job.training.optimizer, 1))
    said = []
    for verb, rates in (("write", measured.checkpoint_write), ("read", measured.checkpoint_read)):
        known = {int(name.removeprefix("n")): rate for name, rate in rates.items()}
        if known:
            nearest = min(known, key=lambda writers: abs(writers - layout.world_size))
            said.append(f"{states / known[nearest]:.3g} s to {verb} by {nearest}")
    if said:
        yield f"a checkpoint of {states / 1e9:.3g} GB takes {', '.join(said)}, as measured"
