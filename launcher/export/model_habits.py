"""Habits of a stack where the user's code builds the model: accelerate, Hugging Face's Trainer, Lightning, any script.

Names: accelerate 1.15.0, commands/config/config_args.py; transformers 5.24, training_args.py; liger-kernel 0.6,
transformers/monkey_patch.py, _apply_liger_kernel_to_instance; lightning 2.6, pytorch/strategies/fsdp.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from launcher.planner.deepspeed_config import habits as in_deepspeed
from launcher.planner.habits import KEYS, NONE, SEGMENTS, Entry, Option, Setup, Table, lacking

CODE = "the model's code and PyTorch decide"
FSDP = "FSDP2 and DDP do it in their own way"
IN_SCRIPT = "start.sh sets it, from= is given the file of settings"
LIGER = {"fused_rotary": "rope", "fused_norm": "rms_norm", "fused_activation": "swiglu", "fused_loss": "cross_entropy"}
SHARDED = ("widens_sums", "reduces_whole", "late_gradients", "fused_accumulation", "overlap_grad_reduce",
           "pipeline_overlap", "overlap_replicated", "dp_messages", "gathers_per_layer", "overlap_gathers",
           "copies_gathered", "gathers_every_pass")  # fmt: skip
SEGMENTS_OF_START = Option(settings=SEGMENTS, unread=IN_SCRIPT)


def any_program(setup: Setup) -> Table:
    """Of what starts a program and knows nothing of it."""
    return lacking("it starts any program, which has its own settings", *KEYS)


def started(setup: Setup) -> Table:
    """Of a start script for any program."""
    return {**any_program(setup), "expandable_segments": Option(settings=SEGMENTS, unread="from= reads no such script")}


def accelerate(setup: Setup) -> Table:
    """Keys of accelerate's YAML, and of DeepSpeed's JSON where its plugin trains."""
    compiled = {True: {"dynamo_config.dynamo_backend": "INDUCTOR"}, False: NONE}
    rest: Table = in_deepspeed(setup) if setup.deepspeed else lacking(CODE, *KEYS) | lacking(FSDP, *SHARDED)
    return {**rest, "compile": Option(settings=compiled), "expandable_segments": SEGMENTS_OF_START}


def trainer(setup: Setup) -> Table:
    """TrainingArguments, of their start script, and Liger's kernels for a Llama-like model that is not compiled."""
    found = dict(accelerate(setup))
    found["compile"] = Option(settings={on: {"torch_compile": on} for on in (True, False)})
    found["expandable_segments"] = Option(settings=SEGMENTS)
    return found | (_liger() if setup.gated and not setup.compile else {})


def _liger() -> dict[str, Entry]:
    return {
        key: Option(settings={on: {f"liger_kernel_config.{name}": on} for on in (True, False)})
        for key, name in LIGER.items()
    }


def lightning(setup: Setup) -> Table:
    """Arguments of FSDPStrategy, and DeepSpeed's JSON where its strategy trains."""
    rest: Table = in_deepspeed(setup) if setup.deepspeed else lacking(CODE, *KEYS) | lacking(FSDP, *SHARDED)
    found = {key: _in_module(entry) for key, entry in rest.items()}
    if not setup.deepspeed and setup.zero_stage and setup.tp == 1 and setup.dtype != "fp32":
        sums: dict[Any, dict[str, str]] = {setup.dtype: {}, "fp32": {"reduce_dtype": "torch.float32"}}
        found["grad_reduce_dtype"] = Option(settings=sums, unread=IN_MODULE)
    return found | {"expandable_segments": Option(settings=SEGMENTS, unread=IN_MODULE)}


IN_MODULE = "from= reads no module of Lightning"


def _in_module(entry: Entry) -> Entry:
    return replace(entry, unread=IN_MODULE) if isinstance(entry, Option) else entry
