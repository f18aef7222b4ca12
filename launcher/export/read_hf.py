"""Reads layouts from DeepSpeed's JSON and accelerate's YAML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launcher.errors import InputError
from launcher.export.model_habits import accelerate
from launcher.export.read_megatron import take_flags
from launcher.export.reading import Reading, flag, number
from launcher.files import read_json
from launcher.planner.deepspeed_config import habits
from launcher.planner.habits import Setup, flat, habits_in

Data = Mapping[str, Any]
# Of FSDP's sharding strategies, by name or by number: ZeRO stage, and whether shards stay in a node.
STRATEGIES = {
    "FULL_SHARD": (3, False), "1": (3, False),
    "SHARD_GRAD_OP": (2, False), "2": (2, False),
    "NO_SHARD": (0, False), "3": (0, False),
    "HYBRID_SHARD": (3, True), "4": (3, True),
    "HYBRID_SHARD_ZERO2": (2, True), "5": (2, True),
}  # fmt: skip
HPZ = "zero_hpz_partition_size"
MICRO, STEPS = "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"
DS_READ = {
    "train_batch_size",
    MICRO,
    "gradient_accumulation_steps",
    "zero_optimization",
    "bf16",
    "fp16",
    "gradient_clipping",
    "tensor_parallel",
    "zero_allow_untested_optimizer",
    "steps_per_print",
    "zero_force_ds_cpu_optimizer",
    "wall_clock_breakdown",
    "communication_data_type",
    "data_types",
    "optimizer",
    "scheduler",
}
DS_ONLY = ("train_batch_size", MICRO, "zero_optimization")  # keys of no other tool
DS_GROUPS = ("bf16", "fp16", "optimizer", "scheduler")
FSDP_READ = {"version", "auto_wrap_policy", "backward_prefetch", "backward_prefetch_policy", "forward_prefetch",
             "cpu_ram_efficient_loading", "offload_params", "cpu_offload", "reshard_after_forward", "sharding_strategy",
             "state_dict_type", "sync_module_states", "transformer_layer_cls_to_wrap", "use_orig_params",
             "activation_checkpointing", "min_num_params", "limit_all_gathers", "final_state_dict_type", "xla",
             "xla_fsdp_v2", "xla_fsdp_grad_ckpt"}  # fmt: skip
PARALLELISM_READ = tuple(f"parallelism_config_{axis}_" for axis in ("dp_replicate", "dp_shard", "cp", "tp", "sp"))
SUMS = ("communication_data_type", "data_types.grad_accum_dtype")  # fmt: skip
ACCELERATE_READ = {"compute_environment", "distributed_type", "num_machines", "num_processes", "mixed_precision",
                   "fsdp_config", "parallelism_config", "deepspeed_config", "megatron_lm_config",
                   "machine_rank", "main_process_ip",
                   "main_process_port", "main_training_function", "rdzv_backend", "same_network", "use_cpu", "debug",
                   "gpu_ids", "downcast_bf16", "dynamo_config", "enable_cpu_affinity", "tpu_env", "tpu_use_cluster",
                   "tpu_use_sudo"}  # fmt: skip


def is_deepspeed(data: Data) -> bool:
    """Whether a JSON object is a configuration of DeepSpeed's: its keys alone say so."""
    return any(key in data for key in DS_ONLY) or any(isinstance(data.get(key), Mapping) for key in DS_GROUPS)


def named_deepspeed(file: Path, remedy: str) -> Data:
    """The configuration in a file that another file names."""
    data = read_json(file, remedy=remedy)
    if not is_deepspeed(data):
        raise InputError(f"{file} is no configuration of DeepSpeed's, it has none of {', '.join(DS_ONLY)}: {remedy}")
    return data


def read_deepspeed(data: Data) -> Reading:
    reading = Reading("deepspeed")
    take_deepspeed(data, reading)
    _leave_open(data, reading)
    return reading


def _leave_open(data: Data, reading: Reading) -> None:
    """Leave open what the Trainer or accelerate fills in."""
    for key, name in (("layout.micro_batch", MICRO), ("train.global_batch", STEPS)):
        if data.get(name) == "auto" and key not in reading.keys:
            reading.open[key] = f"{name}=auto"
    if any(_group(data, dtype).get("enabled") == "auto" for dtype in ("bf16", "fp16")):
        reading.open["train.dtype"] = "bf16.enabled=auto"
        del reading.keys["train.dtype"]


def take_deepspeed(data: Data, reading: Reading) -> None:
    """The keys of a configuration."""
    zero = _group(data, "zero_optimization")
    reading.take("stack", "deepspeed")
    reading.take("layout.pp", 1)
    reading.take("layout.cp", 1)
    reading.take("layout.tp", number(_group(data, "tensor_parallel").get("autotp_size"), "autotp_size") or 1)
    reading.take("layout.micro_batch", number(data.get(MICRO), MICRO))
    reading.take("train.global_batch", number(data.get("train_batch_size"), "train_batch_size"))
    reading.accumulation = number(data.get("gradient_accumulation_steps", 1), "gradient_accumulation_steps")
    stage = zero.get("stage", 0)
    stage = int(stage) if str(stage) in ("0", "1", "2", "3") else stage
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        raise InputError(f"zero_optimization.stage={stage!r} must be 0, 1, 2 or 3")
    reading.take("layout.zero_stage", stage)
    reading.take("train.dtype", next((d for d in ("bf16", "fp16") if flag(_group(data, d).get("enabled"))), "fp32"))
    _take_habits(data, stage, reading)
    if _group(zero, "offload_optimizer").get("device") == "cpu":
        reading.take("layout.offload_optimizer", True)
    if _group(zero, "offload_param").get("device") in ("cpu", "nvme"):
        reading.unread.append("zero_optimization.offload_param: there is no key for parameters on the host")
    if (number(zero.get("mics_shard_size"), "mics_shard_size") or 1) > 1:
        reading.take("layout.shard_group", number(zero["mics_shard_size"], "mics_shard_size"))
    reading.unread += _zero_plus_plus(zero)
    reading.unread += [f"{key}" for key in sorted(set(data) - DS_READ)]
    reading.unread += [f"{key}=auto" for key in sorted(data) if data[key] == "auto"]
    reading.unread.append(
        "a pipeline, and recomputation: they are in the model's code, set layout.pp or layout.recompute"
    )


def _zero_plus_plus(zero: Data) -> Iterator[str]:
    """ZeRO++ (https://arxiv.org/abs/2306.10209), which has no keys here: its shards are those of ZeRO-3."""
    if (number(zero.get(HPZ), HPZ) or 1) > 1:
        yield f"zero_optimization.{HPZ}: weights are gathered from all ranks, with no copy of them in each group"
    for key in ("zero_quantized_weights", "zero_quantized_gradients"):
        if flag(zero.get(key)):
            yield f"zero_optimization.{key}: its messages are counted in whole"


def _take_habits(data: Data, stage: int, reading: Reading) -> None:
    """Overlap, dtype and form of the sums of gradients."""
    found = flat(data)
    for key, value in habits_in(habits(Setup(dtype=reading.keys["train.dtype"], zero_stage=stage)), found).items():
        reading.take(f"stack.{key}", value)
    if "stack.grad_reduce_dtype" not in reading.keys:
        reading.unread += [f"{key}={found[key]}" for key in SUMS if found.get(key) not in (None, "auto")]


def read_accelerate(file: Path, data: Data) -> Reading:
    reading = Reading("accelerate")
    take_accelerate(file, data, reading)
    return reading


def take_accelerate(file: Path, data: Data, reading: Reading) -> None:
    """The keys of accelerate's file."""
    machines = number(data.get("num_machines"), "num_machines") or 1
    processes = number(data.get("num_processes"), "num_processes")
    reading.take("cluster.num_nodes", machines)
    reading.take("cluster.node.num_gpus", processes // machines if processes else None)
    precision = str(data.get("mixed_precision", "no"))
    reading.take("train.dtype", precision if precision in ("bf16", "fp16") else "fp32")
    if precision == "fp8":
        reading.unread.append("mixed_precision: fp8")
    reading.take("layout.pp", 1)
    kind = data.get("distributed_type")
    if kind == "DEEPSPEED":
        _take_plugin(file, _group(data, "deepspeed_config"), reading)
    elif kind == "FSDP":
        take_fsdp(_group(data, "fsdp_config"), _group(data, "parallelism_config"), reading)
    elif kind == "MEGATRON_LM":
        _take_megatron(_group(data, "megatron_lm_config"), reading)
    else:
        take_plain(reading, dtype=reading.keys["train.dtype"])
    for key, value in habits_in({"compile": accelerate(Setup())["compile"]}, flat(data)).items():
        reading.take(f"stack.{key}", value)
    reading.unread += sorted(str(key) for key in set(data) - ACCELERATE_READ)
    reading.unread.append("the micro batch and the accumulation: they are in the script, set layout.micro_batch")


def take_plain(reading: Reading, *, dtype: str = "fp32") -> None:
    """Plain data parallelism, as PyTorch has it."""
    plain = {"stack": "fsdp", "layout.pp": 1, "layout.tp": 1, "layout.cp": 1, "layout.zero_stage": 0,
             "train.dtype": dtype}  # fmt: skip
    for key, value in plain.items():
        reading.take(key, value)


def _take_megatron(plugin: Data, reading: Reading) -> None:
    """Accelerate's plugin for Megatron-LM."""
    reading.target = "megatron"
    said = {name.removeprefix("megatron_lm_"): value for name, value in plugin.items()}
    flags = {flag_name: [str(said[name])] for name, flag_name in PLUGIN.items() if said.get(name) is not None}
    for name, flag_name in SWITCHES.items():
        if flag(said.get(name)):
            flags[flag_name] = []
    dtype = reading.keys["train.dtype"]
    take_flags(flags | ({f"--{dtype}": []} if dtype != "fp32" else {}), reading)
    steps = number(said.get("num_micro_batches"), "num_micro_batches")
    reading.accumulation = steps
    reading.unread += sorted(f"megatron_lm_{name}" for name in set(said) - {*PLUGIN, *SWITCHES, *PLUGIN_FREE})


PLUGIN = {"tp_degree": "--tensor-model-parallel-size", "pp_degree": "--pipeline-model-parallel-size"}
SWITCHES = {
    "sequence_parallelism": "--sequence-parallel",
    "use_distributed_optimizer": "--use-distributed-optimizer",
    "recompute_activations": "--recompute-activations",
}
PLUGIN_FREE = ("gradient_clipping", "num_micro_batches")


def _take_plugin(file: Path, plugin: Data, reading: Reading) -> None:
    """DeepSpeed's own JSON where it is named, else the plugin's keys."""
    named = plugin.get("deepspeed_config_file")
    if named:
        path = file.parent / str(named)
        take_deepspeed(named_deepspeed(path, f"{file} names it as deepspeed_config_file"), reading)
        return
    data: dict[str, Any] = {"zero_optimization": {"stage": plugin.get("zero_stage", 2)}}
    data["zero_optimization"]["offload_optimizer"] = {"device": plugin.get("offload_optimizer_device")}
    data["gradient_accumulation_steps"] = plugin.get("gradient_accumulation_steps", 1)
    dtype = reading.keys["train.dtype"]
    data |= {dtype: {"enabled": True}} if dtype != "fp32" else {}
    take_deepspeed(data, reading)


def take_fsdp(fsdp: Data, parallelism: Data, reading: Reading) -> None:
    reading.take("stack", "fsdp")
    stage, hybrid = _fsdp_stage(fsdp)
    reading.take("layout.zero_stage", stage)
    degrees = {
        axis: number(parallelism.get(f"parallelism_config_{axis}_size"), axis) or 1
        for axis in ("dp_replicate", "dp_shard", "cp", "tp", "sp")
    }
    reading.take("layout.tp", degrees["tp"])
    reading.take("layout.cp", degrees["cp"])
    if degrees["dp_replicate"] > 1:
        reading.take("layout.shard_group", degrees["dp_shard"] * degrees["cp"])
    elif hybrid:
        reading.take("layout.shard_group", "node")
    if degrees["sp"] > 1:
        reading.unread.append(f"parallelism_config_sp_size={degrees['sp']}: Ulysses has no key")
    reading.take("layout.recompute", "full" if flag(fsdp.get("fsdp_activation_checkpointing")) else "none")
    strange = {str(key) for key in fsdp if str(key).removeprefix("fsdp_") not in FSDP_READ}
    strange |= {str(key) for key in parallelism if not str(key).startswith(PARALLELISM_READ)}
    reading.unread += sorted(strange)
    if flag(fsdp.get("fsdp_offload_params")):
        reading.unread.append("fsdp_offload_params: there is no key for parameters on the host")


def _fsdp_stage(fsdp: Data) -> tuple[int, bool]:
    """ZeRO stage, and whether shards stay in a node, of FSDP 1 and 2."""
    reshards = fsdp.get("fsdp_reshard_after_forward", fsdp.get("fsdp_sharding_strategy", "FULL_SHARD"))
    if isinstance(reshards, bool) or str(reshards).lower() in ("true", "false"):
        return (3 if flag(reshards) else 2), False
    name = str(reshards).upper()
    if name not in STRATEGIES:
        raise InputError(f"the sharding strategy {name} is unknown: known are {', '.join(STRATEGIES)}")
    return STRATEGIES[name]


def _group(data: Data, key: str) -> Data:
    value = data.get(key)
    return value if isinstance(value, Mapping) else {}
