"""Habits of a stack in torchtitan's settings. Names: torchtitan 0.3.0, torchtitan/config/configs.py."""

from __future__ import annotations

from launcher.planner.habits import ALLOCATOR, NONE, Option, Setup, Table, lacking

UNCOMPILED = "torchtitan overlaps tensor parallelism where it compiles the model: set stack.compile=true"


def torchtitan(setup: Setup) -> Table:
    """Keys of Trainer.Config; a variable of run_train.sh."""
    return {
        **lacking("torch.compile fuses it, else no option", "fused_norm", "fused_rotary", "fused_activation"),
        **lacking("components/loss.py works on fp32 logits; compile.components fuses it", "fused_loss", "wide_loss"),
        **lacking("the model's function chooses its projections", "joint_qkv", "joint_gate"),
        **lacking("torch's SDPA takes the kernel that PyTorch has", "flash_version", "triton_attention",
                  "calls_dropout"),
        **lacking("DTensor's plan gathers once and sums in the training dtype (models/llama3/parallelize.py)",
                  "gathers_again", "tp_reduce_dtype"),
        **lacking("FSDP2 (torch.distributed.fsdp.fully_shard) does it in its own way", "widens_sums", "reduces_whole",
                  "late_gradients", "fused_accumulation", "overlap_grad_reduce", "pipeline_overlap",
                  "overlap_replicated", "dp_messages", "gathers_per_layer", "overlap_gathers", "copies_gathered",
                  "gathers_every_pass"),
        **lacking("torchao casts in each pass", "caches_fp8"),
        **lacking("torch.distributed.pipelining does it in its own way", "sends_in_turn", "pipeline_groups",
                  "pipeline_fragmentation", "frees_stage_inputs", "pipeline_shards_gradients"),
        **lacking("allowed by any list of modules (module_fqns_per_model_part)", "empty_ends"),
        **lacking("torch.utils.checkpoint stops early", "recompute_stops_early"),
        "compile": Option(
            settings={on: {"compile.enable": on} for on in (True, False)}, earlier={"training.compile": True}
        ),
        "compiles_loss": Option(
            settings={True: {"compile.components": ["model", "loss"]}, False: {"compile.components": ["model"]}}
        ),
        "tp_overlap": Option(
            settings={
                "none": {"compile.enable_async_tensor_parallel": False},
                **({"async": {"compile.enable_async_tensor_parallel": True}} if setup.compile else {}),
            },
            earlier={"parallelism.enable_async_tensor_parallel": "async"},
        ),
        "loss_parallel": Option(
            settings={True: NONE},
            earlier=dict.fromkeys(("parallelism.disable_loss_parallel", "training.disable_loss_parallel"), False),
        ),
        "grad_reduce_dtype": Option(settings={"fp32": {"training.mixed_precision_reduce": "float32"}}),
        "expandable_segments": Option(
            settings={on: {ALLOCATOR: f"expandable_segments:{on}"} for on in (True, False)}
        ),
    }  # fmt: skip
