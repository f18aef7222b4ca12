"""bf16 with fp32 main parameters stays near fp32; the traps that engines set are real: each is shown to train wrong."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
from ranks import SHALLOW
from training import Curve, curves, import_deepspeed

from launcher.layout import Layout

STEPS = 10
ONE = Layout(tp=1, pp=1, dp=1, micro_batch=8)


def arguments(optimizer: str, **training: Any) -> dict[str, Any]:
    return {"model": SHALLOW, "optimizer": optimizer, "num_steps": STEPS, **training}


@pytest.fixture(scope="module")
def fp32() -> dict[str, Curve]:
    return curves(1, {name: (ONE, arguments(name)) for name in ("sgd", "adamw")})


@pytest.fixture(scope="module")
def bf16() -> Curve:
    return curves(1, {"one": (ONE, arguments("adamw", dtype="bf16"))})["one"]


def gap(curve: Curve, right: Curve) -> float:
    return max(abs(a[0] - b[0]) for a, b in zip(curve, right, strict=True))


BF16 = {
    "one rank": Layout(tp=1, pp=1, dp=1, micro_batch=2),
    "dp2": Layout(tp=1, pp=1, dp=2, micro_batch=2),
    "dp2 zero1": Layout(tp=1, pp=1, dp=2, zero_stage=1, micro_batch=2),
    "dp2 zero3": Layout(tp=1, pp=1, dp=2, zero_stage=3, micro_batch=2),
    "cp2": Layout(tp=1, pp=1, dp=1, cp=2, micro_batch=4),
    "tp2 sp": Layout(tp=2, pp=1, dp=1, sequence_parallel=True, micro_batch=4),
    "pp2": Layout(tp=1, pp=2, dp=1, micro_batch=2),
    "tp2 pp2 dp2 zero2 sp": Layout(tp=2, pp=2, dp=2, zero_stage=2, sequence_parallel=True, micro_batch=2),
    "tp2 pp2 dp2 zero0": Layout(tp=2, pp=2, dp=2, micro_batch=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2, 8])
def test_bf16_with_fp32_main_parameters_follows_bf16_on_one_rank(
    world_size: int, fp32: dict[str, Curve], bf16: Curve
) -> None:
    layouts = {name: layout for name, layout in BF16.items() if layout.world_size == world_size}
    found = curves(world_size, {name: (layout, arguments("adamw", dtype="bf16")) for name, layout in layouts.items()})
    assert {name: gap(curve, bf16) for name, curve in found.items() if gap(curve, bf16) > 5e-3} == {}
    assert gap(bf16, fp32["adamw"]) > 0  # it did compute in bf16


@pytest.mark.slow
def test_deepspeed_bf16_follows_torch_bf16(bf16: Curve) -> None:
    import_deepspeed()
    layouts = {
        "dp2 zero1": Layout(tp=1, pp=1, dp=2, zero_stage=1, micro_batch=4),
        "pp2 zero1": Layout(tp=1, pp=2, dp=1, zero_stage=1, micro_batch=2),
    }
    found = curves(
        2, {n: (layout, arguments("adamw", dtype="bf16", engine="deepspeed")) for n, layout in layouts.items()}
    )
    assert {name: gap(curve, bf16) for name, curve in found.items() if gap(curve, bf16) > 5e-3} == {}


@pytest.mark.slow
def test_trap_deepspeed_pipeline_with_zero0_clips_by_the_wrong_norm(fp32: dict[str, Curve]) -> None:
    import_deepspeed()
    wrong, right = (
        Layout(tp=1, pp=2, dp=1, zero_stage=0, micro_batch=2),
        Layout(tp=1, pp=2, dp=1, zero_stage=1, micro_batch=2),
    )
    found = curves(
        2, {n: (layout, arguments("sgd", engine="deepspeed")) for n, layout in {"wrong": wrong, "right": right}.items()}
    )
    assert gap(found["wrong"], fp32["sgd"]) > 1e-3
    assert gap(found["right"], fp32["sgd"]) < 1e-5


@pytest.mark.slow
def test_trap_deepspeed_bf16_with_zero0_starts_adam_one_step_late(bf16: Curve) -> None:
    import_deepspeed()
    layouts = {
        "wrong": Layout(tp=1, pp=1, dp=2, zero_stage=0, micro_batch=4),
        "right": Layout(tp=1, pp=1, dp=2, zero_stage=1, micro_batch=4),
    }
    found = curves(
        2, {n: (layout, arguments("adamw", dtype="bf16", engine="deepspeed")) for n, layout in layouts.items()}
    )
    assert gap(found["wrong"], bf16) > 5e-3 > gap(found["right"], bf16)


@pytest.mark.slow
def test_trap_fsdp_that_reshards_under_a_split_backward_loses_gradients(fp32: dict[str, Curve]) -> None:
    layout = Layout(tp=1, pp=2, dp=2, zero_stage=3, schedule="zb_h1", micro_batch=2)
    right = curves(4, {"right": (layout, arguments("sgd"))})["right"]
    with mock.patch("launcher.worker.engines.torch_engine.SPLIT_BACKWARD", frozenset()):
        wrong = curves(4, {"wrong": (layout, arguments("sgd"))})["wrong"]
    assert gap(right, fp32["sgd"]) < 1e-5
    assert gap(wrong, fp32["sgd"]) > 1e-3
