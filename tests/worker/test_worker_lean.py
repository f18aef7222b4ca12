"""What the engine does to hold less computes the same; the tracker of live bytes counts what is there."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from ranks import LLAMA
from torch import nn
from training import curves
from truth.live_bytes import LiveBytes

from launcher.layout import Layout
from launcher.worker.model.loss import cross_entropy_sum
from launcher.worker.model.norm import RMSNorm
from launcher.worker.parallel.re_all_gather import made_again


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_equals_torch_with_its_gradients(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ours, theirs = RMSNorm(32, eps=1e-5).to(dtype), nn.RMSNorm(32, eps=1e-5).to(dtype)
    with torch.no_grad():
        theirs.weight.copy_(ours.weight.normal_())
    x = torch.randn(2, 5, 32, dtype=dtype)
    mine, right = x.clone().requires_grad_(), x.clone().requires_grad_()
    upstream = torch.randn(2, 5, 32, dtype=dtype)
    found, wanted = ours(mine), theirs(right)
    found.backward(upstream)
    wanted.backward(upstream)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    for a, b in ((found, wanted), (mine.grad, right.grad), (ours.weight.grad, theirs.weight.grad)):
        assert a is not None and b is not None and torch.allclose(a.float(), b.float(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("chunk_logits", [1, 67 * 3, 2**24])
def test_cross_entropy_in_chunks_equals_torch(chunk_logits: int) -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 5, 67) * 30, torch.randint(0, 67, (2, 5))
    mine, right = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    with mock.patch("launcher.worker.model.loss.CHUNK_LOGITS", chunk_logits):
        found = cross_entropy_sum(mine, targets)
    wanted = F.cross_entropy(right.flatten(0, 1), targets.flatten(), reduction="sum")
    (found / 7).backward()  # type: ignore[no-untyped-call]
    (wanted / 7).backward()  # type: ignore[no-untyped-call]
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert mine.grad is not None and right.grad is not None and torch.allclose(mine.grad, right.grad, atol=1e-6)


@pytest.mark.slow
def test_what_is_gathered_again_for_the_backward_pass_gives_the_same_losses() -> None:
    layout = Layout(tp=2, pp=1, dp=1, cp=2, sequence_parallel=True, micro_batch=4)
    cases = {"run": (layout, {"model": replace(LLAMA, layers=2), "optimizer": "sgd", "num_steps": 3})}
    kept = curves(4, cases)
    with mock.patch("launcher.worker.parallel.parallelize.can_re_all_gather", return_value=True):
        assert curves(4, cases) == kept


def test_a_gathered_tensor_is_made_once_for_all_who_saved_it() -> None:
    whole, made = torch.randn(4, 3), []
    weights = [torch.randn(3, 2, requires_grad=True) for _ in range(2)]

    def make() -> torch.Tensor:
        made.append(True)
        return whole.clone()

    entered = whole.clone()
    with made_again(entered, make):
        outputs = [entered @ weight for weight in weights]
    entered.zero_()  # what was saved is not this
    sum(output.sum() for output in outputs).backward()  # type: ignore[union-attr]
    assert len(made) == 1
    for weight in weights:
        assert weight.grad is not None and torch.allclose(weight.grad, whole.sum(0)[:, None].expand(3, 2))


def test_live_bytes_follow_storages_views_resizes_and_ends() -> None:
    with LiveBytes() as live:
        first = torch.zeros(1000)
        view = first[10:]
        second = first + 1
        assert live.live_bytes == 8000
        del first
        assert live.live_bytes == 8000  # the view keeps its storage
        del view
        assert live.live_bytes == 4000
        second.untyped_storage().resize_(0)
        assert live.live_bytes == 0
        second.untyped_storage().resize_(40_000)
        assert live.live_bytes == 40_000
    assert live.peak_bytes == 40_000
    assert torch.UntypedStorage.resize_.__qualname__ != "LiveBytes.__enter__.<locals>.resize"
