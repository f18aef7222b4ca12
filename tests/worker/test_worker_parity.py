"""The same seed and data give the same loss under every layout: fp32, SGD with clipping and AdamW, both engines.

Adam hides gradients that are wrong by a factor and clipping by a wrong norm; SGD with clipping shows both, and the
norm itself is compared too. All cases of one world size share one start of its ranks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ranks import LLAMA, TINY
from training import Curve, curves, import_deepspeed

from launcher.layout import Layout
from launcher.model import Model

pytestmark = pytest.mark.timeout(900)  # the eight ranks of a case share whatever cores there are
TOLERANCE = 1e-5
STEPS = 3  # the last loss follows two updates, the second with momentum
Case = tuple[Layout, dict[str, Any]]
Reference = dict[tuple[str, Model], Curve]

DEGREES = [(2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1), (2, 1, 2), (1, 2, 2), (2, 2, 2)]
TORCH: dict[str, Layout] = {
    f"tp{tp}-pp{pp}-dp{dp}": Layout(tp=tp, pp=pp, dp=dp, micro_batch=2) for tp, pp, dp in DEGREES
} | {
    "tp2 sequence parallel": Layout(tp=2, pp=1, dp=1, sequence_parallel=True, micro_batch=4),
    "dp2 zero1": Layout(tp=1, pp=1, dp=2, zero_stage=1, micro_batch=2),
    "dp2 zero2 accumulated": Layout(tp=1, pp=1, dp=2, zero_stage=2, micro_batch=1),
    "dp2 zero3 accumulated": Layout(tp=1, pp=1, dp=2, zero_stage=3, micro_batch=2),
    "pp2 gpipe": Layout(tp=1, pp=2, dp=1, schedule="gpipe", micro_batch=2),
    "pp2 interleaved": Layout(tp=1, pp=2, dp=1, schedule="interleaved", virtual_stages=2, micro_batch=2),
    "pp2 uneven": Layout(tp=1, pp=2, dp=1, layer_split=(3, 1), micro_batch=2),
    "tp2 dp2 zero3 sp full": Layout(
        tp=2, pp=1, dp=2, zero_stage=3, sequence_parallel=True, recompute="full", micro_batch=2
    ),
    "pp2 dp2 zero2 zb": Layout(tp=1, pp=2, dp=2, zero_stage=2, schedule="zb_h1"),
    "pp2 dp2 zero3 zb": Layout(tp=1, pp=2, dp=2, zero_stage=3, schedule="zb_h1"),
    "pp4 selective": Layout(tp=1, pp=4, dp=1, recompute="selective", micro_batch=2),
    "dp4 zero3": Layout(tp=1, pp=1, dp=4, zero_stage=3),
    "tp4": Layout(tp=4, pp=1, dp=1, sequence_parallel=True, micro_batch=4),
    "tp2 pp2 dp2 zero1 sp": Layout(tp=2, pp=2, dp=2, zero_stage=1, sequence_parallel=True, micro_batch=2),
    "tp2 pp2 dp2 zero3 full": Layout(tp=2, pp=2, dp=2, zero_stage=3, recompute="full", micro_batch=2),
    "tp2 pp2 dp2 interleaved zero2": Layout(
        tp=2, pp=2, dp=2, zero_stage=2, schedule="interleaved", virtual_stages=2, micro_batch=2
    ),
    "tp2 pp2 dp2 zb sp": Layout(tp=2, pp=2, dp=2, schedule="zb_h1", sequence_parallel=True, micro_batch=2),
    "tp2 pp2 dp2 other order": Layout(tp=2, pp=2, dp=2, zero_stage=1, axis_order="dp-tp-pp-cp", micro_batch=2),
    "cp2": Layout(tp=1, pp=1, dp=1, cp=2, micro_batch=4),
    "cp2 zero3": Layout(tp=1, pp=1, dp=1, cp=2, zero_stage=3, micro_batch=4),
    "cp4": Layout(tp=1, pp=1, dp=1, cp=4, recompute="selective", micro_batch=4),
    "tp2 cp2 sp": Layout(tp=2, pp=1, dp=1, cp=2, sequence_parallel=True, micro_batch=4),
    "pp2 cp2": Layout(tp=1, pp=2, dp=1, cp=2, recompute="full", micro_batch=2),
    "dp2 cp2 zero1": Layout(tp=1, pp=1, dp=2, cp=2, zero_stage=1, micro_batch=2),
    "tp2 cp2 dp2 zero2 sp": Layout(tp=2, pp=1, dp=2, cp=2, zero_stage=2, sequence_parallel=True, micro_batch=2),
    "tp2 cp2 pp2 other order": Layout(tp=2, pp=2, dp=1, cp=2, axis_order="cp-pp-tp-dp", micro_batch=2),
}
DEEPSPEED: dict[str, Layout] = {
    f"deepspeed tp2 dp2 zero{stage}": Layout(tp=2, pp=1, dp=2, zero_stage=stage, micro_batch=2) for stage in range(4)
} | {
    "deepspeed dp2 zero3": Layout(tp=1, pp=1, dp=2, zero_stage=3, micro_batch=2),
    "deepspeed pp2 zero1": Layout(tp=1, pp=2, dp=1, zero_stage=1, micro_batch=2),
    "deepspeed pp2 dp2 zero1 uneven": Layout(tp=1, pp=2, dp=2, zero_stage=1, layer_split=(1, 3), micro_batch=2),
    "deepspeed tp2 pp2 dp2 zero1": Layout(tp=2, pp=2, dp=2, zero_stage=1, micro_batch=2),
    "deepspeed tp2 pp2 dp2 zero1 other order": Layout(
        tp=2, pp=2, dp=2, zero_stage=1, axis_order="dp-tp-pp-cp", micro_batch=2
    ),
}


def shallow(model: Model, layout: Layout) -> Model:
    """Two layers where the layout needs no more: each costs a rank its collectives, and two show what four do."""
    divides = layout.pp * layout.virtual_stages > 2 or layout.layer_split
    return model if divides else replace(model, layers=2)


def cases(world_size: int, layouts: dict[str, Layout], **training: Any) -> dict[str, Case]:
    """Every layout of a world size with both optimizers; the two model families take turns."""
    found: dict[str, Case] = {}
    for number, (name, layout) in enumerate(layouts.items()):
        if layout.world_size != world_size:
            continue
        models = [shallow(model, layout) for model in (TINY, LLAMA) if model.kv_heads % layout.tp == 0]
        for optimizer, turn in (("sgd", number), ("adamw", number + 1)):
            model = models[turn % len(models)]
            arguments = {"model": model, "optimizer": optimizer, "num_steps": STEPS, **training}
            found[f"{name} {optimizer} {model.name} of {model.layers}"] = (layout, arguments)
    return found


@pytest.fixture(scope="module")
def reference() -> Reference:
    """One process, no parallelism, by (optimizer, model)."""
    whole = Layout(tp=1, pp=1, dp=1, micro_batch=8)
    models = [model for deep in (TINY, LLAMA) for model in (deep, replace(deep, layers=2))]
    pairs = [(optimizer, model) for optimizer in ("sgd", "adamw") for model in models]
    found = curves(1, {f"{o}/{m}": (whole, {"model": m, "optimizer": o, "num_steps": STEPS}) for o, m in pairs})
    return {(o, m): found[f"{o}/{m}"] for o, m in pairs}


def differences(found: dict[str, Curve], wanted: dict[str, Case], reference: Reference) -> list[str]:
    """Every case that leaves the reference by more than the tolerance, in loss or in grad norm."""
    wrong = []
    for name, curve in found.items():
        arguments = wanted[name][1]
        right = reference[arguments["optimizer"], arguments["model"]]
        loss = max(abs(a[0] - b[0]) for a, b in zip(curve, right, strict=True))
        norms = [abs(a[1] - b[1]) for a, b in zip(curve, right, strict=True) if a[1] is not None and b[1] is not None]
        if loss > TOLERANCE or max(norms, default=0.0) > 1e-4:
            wrong.append(f"{name}: loss off by {loss:.1e}, norm by {max(norms, default=0.0):.1e}")
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_torch_engine_gives_the_loss_of_one_process_under_every_layout(world_size: int, reference: Reference) -> None:
    wanted = cases(world_size, TORCH)
    assert differences(curves(world_size, wanted), wanted, reference) == []


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_deepspeed_engine_gives_the_loss_of_one_process_where_it_is_allowed(
    world_size: int, reference: Reference
) -> None:
    import_deepspeed()
    wanted = cases(world_size, DEEPSPEED, engine="deepspeed")
    assert differences(curves(world_size, wanted), wanted, reference) == []


@pytest.mark.slow
def test_deepspeed_offloads_its_optimizer_without_a_difference(reference: Reference) -> None:
    import_deepspeed()
    layouts = {
        f"deepspeed dp2 zero{stage} offloaded": Layout(
            tp=1, pp=1, dp=2, zero_stage=stage, micro_batch=2, offload_optimizer=True
        )
        for stage in (1, 2, 3)
    }
    layouts["deepspeed pp2 zero1 offloaded"] = Layout(
        tp=1, pp=2, dp=1, zero_stage=1, micro_batch=2, offload_optimizer=True
    )
    wanted = cases(2, layouts, engine="deepspeed")
    assert differences(curves(2, wanted), wanted, reference) == []


def test_the_reference_run_clips_and_learns(reference: Reference) -> None:
    for curve in reference.values():
        assert max(norm for _, norm in curve if norm is not None) > 0.5
        assert len({loss for loss, _ in curve}) == STEPS
