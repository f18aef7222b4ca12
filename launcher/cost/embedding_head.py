"""Work of the first and the last pipeline stage in addition to layers: embedding, final norm, logits, loss."""

from __future__ import annotations

from launcher.cost import elementwise
from launcher.cost.constants import Constants
from launcher.cost.device import Device
from launcher.cost.layer import Part, linear, streamed
from launcher.cost.parameters import padded_vocab
from launcher.layout.job import Job
from launcher.model import Model


def embedding_part(device: Device, model: Model, *, tokens: int) -> Part:
    """Token (and position) lookup; back: gradients are sorted and added into the table."""
    e = device.dtype_bytes
    return streamed(device, elementwise.Traffic(4 * e, 3, 8 * e, 4), float(tokens * model.hidden))


def head_part(device: Device, constants: Constants, job: Job, *, tokens: int, tp: int) -> Part:
    """Final norm, output projection over this rank's share of the vocabulary, and cross-entropy over that share or over
    gathered logits.
    """
    model, stack = job.model, job.stack
    whole = padded_vocab(model, tp)
    loss = elementwise.Traffic(constants.loss_forward_bytes, 10, constants.loss_backward_bytes, 4)
    if stack.fused_loss:
        loss = elementwise.fused_loss(device.dtype_bytes)
    part = linear(device, tokens, model.hidden, whole // tp)
    if stack.loss_parallel or tp == 1:
        part += streamed(device, loss, float(tokens * whole // tp))
    else:
        joined = elementwise.joined_logits(device.dtype_bytes, tp)
        part += streamed(device, loss, float(tokens * whole)) + streamed(device, joined, float(tokens * whole))
    return part + streamed(device, elementwise.norm(device.dtype_bytes, fused=True), float(tokens * model.hidden))
