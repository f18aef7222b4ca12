"""The DeepSpeed configuration of a plan, used by our engine and by the export.

Keys: https://www.deepspeed.ai/docs/config-json/ (DeepSpeed 0.19).
"""

from __future__ import annotations

from typing import Any

from launcher.planner.options import TrainOptions
from launcher.planner.record import Plan


def deepspeed_config(plan: Plan, options: TrainOptions) -> dict[str, Any]:
    """Return DeepSpeed's configuration for `plan`, with batch sizes per data-parallel rank, never `train_batch_size`.

    Pipeline and tensor degrees have no key: the model code builds its stages, and an `mpu` provides the groups.
    """
    layout, training = plan.layout, plan.job.training
    zero: dict[str, Any] = {"stage": layout.zero_stage}
    if layout.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = 0  # also shard small parameters, as the plan assumes
    if training.offload_optimizer and layout.zero_stage > 0:
        zero["offload_optimizer"] = {"device": "cpu"}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": layout.micro_batch,
        "gradient_accumulation_steps": layout.num_micro_batches(training.global_batch),
        "gradient_clipping": options.grad_clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's optimizers on the host too: no compiler needed at run time
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    if training.dtype in ("bf16", "fp16"):
        config[training.dtype] = {"enabled": True}
    sums = plan.job.stack.reduces_in(training)
    if sums != training.dtype and layout.zero_stage > 0:  # else it adds up and reduces in the training dtype
        config |= {"communication_data_type": sums, "data_types": {"grad_accum_dtype": sums}}
    return config
