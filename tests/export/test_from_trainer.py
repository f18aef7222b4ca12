"""`plan from=FILE` of what starts a Trainer, accelerate or DeepSpeed: arguments, scripts, and files that they name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.cli import main
from launcher.errors import InputError
from launcher.export.readers import read_from
from launcher.export.reading import Reading

AUTO = {
    "bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}, "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto", "gradient_clipping": "auto",
    "zero_optimization": {"stage": 3, "stage3_prefetch_bucket_size": "auto", "offload_optimizer": {"device": "cpu"}},
}  # fmt: skip
FSDP = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config:
  fsdp_activation_checkpointing: true
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_reshard_after_forward: false
  fsdp_version: 2
mixed_precision: bf16
num_machines: 1
num_processes: 8
"""


def read(folder: Path, text: str | dict[str, Any], name: str = "file") -> Reading:
    (folder / name).write_text(text if isinstance(text, str) else json.dumps(text))
    return read_from(folder / name)


def layout(reading: Reading) -> dict[str, Any]:
    return {key.removeprefix("layout."): value for key, value in reading.keys.items() if key.startswith("layout.")}


def arguments(**more: Any) -> dict[str, Any]:
    return {
        "output_dir": "out",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "bf16": True,
    } | more


def test_arguments_by_themselves_are_plain_data_parallelism(tmp_path: Path) -> None:
    found = read(tmp_path, arguments(gradient_checkpointing=True, model_name_or_path="meta/x", max_length=4096))
    assert layout(found) == {"pp": 1, "tp": 1, "cp": 1, "zero_stage": 0, "micro_batch": 2, "recompute": "full"}
    assert (found.target, found.accumulation) == ("hf", 4)
    assert (found.keys["stack"], found.keys["train.dtype"], found.keys["model.seq_len"]) == ("fsdp", "bf16", 4096)
    said = " | ".join(found.unread)
    assert "the model meta/x: give model=NAME" in said and "alone it trains in plain data parallelism" in said


@pytest.mark.parametrize(
    ("said", "zero", "group", "recompute"),
    [
        ({"fsdp": "full_shard auto_wrap"}, 3, None, "none"),
        ({"fsdp": ["shard_grad_op", "auto_wrap"]}, 2, None, "none"),
        ({"fsdp": "hybrid_shard"}, 3, "node", "none"),
        ({"fsdp": "no_shard"}, 0, None, "none"),
        ({"fsdp": True}, 3, None, "none"),
        ({"fsdp": True, "fsdp_config": {"reshard_after_forward": False}}, 2, None, "none"),
        ({"fsdp": True, "fsdp_config": {"fsdp_activation_checkpointing": True}}, 3, None, "full"),
        ({"fsdp": True, "fsdp_config": {"version": 1, "reshard_after_forward": "hybrid_shard"}}, 3, "node", "none"),
        ({"fsdp": "", "fsdp_config": None}, 0, None, "none"),
    ],
)
def test_fsdp_in_words_of_transformers_4_and_5(
    said: dict[str, Any], zero: int, group: str | None, recompute: str, tmp_path: Path
) -> None:
    found = layout(read(tmp_path, arguments(**said)))
    assert (found["zero_stage"], found.get("shard_group"), found["recompute"]) == (zero, group, recompute)


def test_parallelism_of_accelerate_in_arguments_is_read(tmp_path: Path) -> None:
    degrees = {"dp_replicate_size": 2, "dp_shard_size": 2, "tp_size": 2, "cp_size": 1}
    found = layout(read(tmp_path, arguments(fsdp=True, parallelism_config=degrees)))
    assert (found["tp"], found["cp"], found["shard_group"]) == (2, 1, 2)


def test_auto_is_what_the_trainer_fills_in_and_asked_for_without_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ds.json").write_text(json.dumps(AUTO))
    for way in ("ds.json", AUTO, json.dumps(AUTO)):
        found = read(tmp_path, arguments(deepspeed=way))
        assert layout(found)["zero_stage"] == 3 and layout(found)["micro_batch"] == 2
        assert (found.accumulation, found.keys["train.dtype"], found.keys["stack"]) == (4, "bf16", "deepspeed")
        assert found.keys["layout.offload_optimizer"] is True
    job = ["plan", f"from={tmp_path / 'ds.json'}", "cluster=dgx_a100_80g", "model=llama2_7b"]
    assert main(job) == 2
    err = capsys.readouterr().err
    for words in ("train_micro_batch_size_per_gpu=auto", "give layout.micro_batch=", "give train.dtype="):
        assert words in err
    assert main([*job, "layout.micro_batch=1", "train.dtype=bf16", "train.global_batch=64"]) == 0
    assert "yours  tp1 pp1 dp8 mb1 zero3" in capsys.readouterr().out


def test_kernels_of_liger_and_compilation_are_read(tmp_path: Path) -> None:
    found = read(tmp_path, arguments(use_liger_kernel=True))
    assert all(found.keys[f"stack.fused_{kind}"] for kind in ("norm", "rotary", "activation", "loss"))
    assert any(line.startswith("fused_linear_cross_entropy") for line in found.unread)
    only = {
        "rope": False,
        "rms_norm": True,
        "swiglu": False,
        "cross_entropy": False,
        "fused_linear_cross_entropy": False,
    }
    keys = read(tmp_path, arguments(use_liger_kernel=True, liger_kernel_config=only)).keys
    kinds = ("norm", "rotary", "activation", "loss")
    assert [keys[f"stack.fused_{kind}"] for kind in kinds] == [True, False, False, False]
    assert read(tmp_path, arguments(torch_compile=True)).keys["stack.compile"] is True
    assert read(tmp_path, arguments(torch_compile_backend="inductor")).keys["stack.compile"] is True


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"use_peft": True}, "use_peft=True: all weights are counted"),
        ({"finetuning_type": "lora"}, "finetuning_type=lora: all weights"),
        ({"load_in_4bit": True}, "load_in_4bit=True: all weights"),
        ({"optim": "adamw_bnb_8bit"}, "optim=adamw_bnb_8bit: AdamW is counted"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size=True"),
    ],
)
def test_what_changes_the_estimate_and_has_no_key_is_named(said: dict[str, Any], words: str, tmp_path: Path) -> None:
    plain = read(tmp_path, arguments()).unread
    assert [line for line in read(tmp_path, arguments(**said)).unread if words in line]
    assert not [line for line in plain if words in line]


def test_yaml_of_axolotl_and_of_llama_factory(tmp_path: Path) -> None:
    (tmp_path / "zero2.json").write_text(json.dumps(AUTO | {"zero_optimization": {"stage": 2}}))
    axolotl = "base_model: x/y\nmicro_batch_size: 2\nsequence_len: 2048\nbf16: auto\nadapter:\ndeepspeed: zero2.json\n"
    found = read(tmp_path, axolotl)
    assert (layout(found)["micro_batch"], layout(found)["zero_stage"], found.keys["model.seq_len"]) == (2, 2, 2048)
    assert (found.accumulation, found.keys["train.dtype"]) == (1, "bf16")
    factory = "per_device_train_batch_size: 1\nfinetuning_type: full\ncutoff_len: 1024\nfp16: true\n"
    found = read(tmp_path, factory)
    assert (found.keys["train.dtype"], found.keys["model.seq_len"]) == ("fp16", 1024)
    assert not any("finetuning_type" in line for line in found.unread)


def test_a_script_of_accelerate_with_its_file_and_flags(tmp_path: Path) -> None:
    (tmp_path / "fsdp.yaml").write_text(FSDP)
    script = """#!/bin/bash
    #SBATCH --nodes=2
    HEAD=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1)
    srun accelerate launch --config_file fsdp.yaml --num_machines 2 --num_processes $(( 2 * 8 )) \\
      --main_process_ip $HEAD train_sft.py --per_device_train_batch_size 2 --bf16 True --gradient_accumulation_steps 8
    """
    found = read(tmp_path, script)
    assert layout(found) == {"pp": 1, "zero_stage": 2, "tp": 1, "cp": 1, "recompute": "full", "micro_batch": 2}
    assert (found.target, found.accumulation, found.keys["train.dtype"]) == ("hf", 8, "bf16")
    assert (found.keys["cluster.num_nodes"], found.keys["cluster.node.num_gpus"]) == (2, 8)
    no_flags = read(tmp_path, "accelerate launch --config_file fsdp.yaml train.py")
    assert (no_flags.target, layout(no_flags)["zero_stage"]) == ("accelerate", 2)
    assert any("they are in the script" in line for line in no_flags.unread)


def test_settings_of_fsdp_that_are_not_known_are_named(tmp_path: Path) -> None:
    text = FSDP.replace("fsdp_version: 2", "fsdp_version: 2\n  fsdp_new_thing: 1")
    assert "fsdp_new_thing" in read(tmp_path, text).unread
    assert not any("fsdp_" in line for line in read(tmp_path, FSDP).unread)


def test_a_command_of_its_own_has_the_arguments(tmp_path: Path) -> None:
    found = read(tmp_path, "llamafactory-cli train --stage sft --per_device_train_batch_size 4 --bf16 true")
    assert (layout(found)["micro_batch"], found.keys["train.dtype"]) == (4, "bf16")


def test_a_file_that_is_named_from_the_projects_root_is_found(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/ds.json").write_text(json.dumps(AUTO))
    (tmp_path / "examples/full").mkdir(parents=True)
    found = read(tmp_path / "examples/full", arguments(deepspeed="configs/ds.json"))
    assert layout(found)["zero_stage"] == 3


def test_flags_of_accelerates_launcher_win_over_its_file(tmp_path: Path) -> None:
    (tmp_path / "fsdp.yaml").write_text(FSDP)
    words = (
        "accelerate launch --config_file fsdp.yaml --fsdp_reshard_after_forward true --mixed_precision fp16 train.py"
    )
    found = read(tmp_path, words)
    assert (layout(found)["zero_stage"], found.keys["train.dtype"]) == (3, "fp16")
    found = read(tmp_path, "accelerate launch --use_deepspeed --zero_stage 1 --mixed_precision bf16 train.py")
    assert (found.keys["stack"], layout(found)["zero_stage"]) == ("deepspeed", 1)


def test_a_script_with_deepspeeds_file(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text(json.dumps(AUTO))
    words = "deepspeed --num_gpus 8 --num_nodes 2 train.py --deepspeed ds.json --per_device_train_batch_size 4 --bf16"
    found = read(tmp_path, words)
    assert (found.target, layout(found)["zero_stage"], layout(found)["micro_batch"]) == ("hf", 3, 4)
    assert (found.keys["cluster.num_nodes"], found.keys["train.dtype"]) == (2, "bf16")
    plain = {"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": 1}, "bf16": {"enabled": True}}
    (tmp_path / "plain.json").write_text(json.dumps(plain))
    found = read(tmp_path, "deepspeed train.py --deepspeed --deepspeed_config plain.json")
    assert (found.target, layout(found)["zero_stage"], layout(found)["micro_batch"]) == ("deepspeed", 1, 2)


def test_accelerates_plugin_of_megatron(tmp_path: Path) -> None:
    text = """
distributed_type: MEGATRON_LM
megatron_lm_config: {megatron_lm_tp_degree: 2, megatron_lm_pp_degree: 2, megatron_lm_num_micro_batches: 2,
  megatron_lm_recompute_activations: true, megatron_lm_sequence_parallelism: true, megatron_lm_new: 1,
  megatron_lm_use_distributed_optimizer: true, megatron_lm_gradient_clipping: 1.0}
mixed_precision: bf16
num_processes: 8
"""
    found = read(tmp_path, text)
    assert found.target == "megatron" and found.accumulation == 2
    assert layout(found) == {
        "tp": 2, "pp": 2, "sequence_parallel": True, "zero_stage": 1, "recompute": "selective",
    }  # fmt: skip
    assert "megatron_lm_new" in found.unread


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (arguments(fsdp="fully_shard"), "fully_shard is none of full_shard"),
        (arguments(deepspeed="absent.json"), "absent.json"),
        (arguments(deepspeed="other.json"), "other.json is no configuration of DeepSpeed's"),
        (arguments(per_device_train_batch_size="two"), "per_device_train_batch_size='two' must be a whole number"),
        (arguments(gradient_accumulation_steps=0), "gradient_accumulation_steps='0' must be"),
        ("accelerate launch --config_file $FILE train.py", "which is known only where it runs"),
        ("accelerate launch --config_file absent.yaml train.py", "absent.yaml"),
        ("torchrun train.py --config_file x.yaml", "starts a script without a Trainer's arguments"),
        ("torchrun train.py --deepspeed --deepspeed_config other.json", "no configuration of DeepSpeed's"),
        ("from transformers import TrainingArguments\nargs = TrainingArguments('x')\n", "is Python, which is not run"),
        ("distributed_type: FSDP\nfsdp_config: {fsdp_sharding_strategy: SOME}\n", "SOME is unknown"),
    ],
)
def test_what_cannot_be_read_is_one_message(text: str | dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"name": "package"}')
    with pytest.raises(InputError) as raised:
        read(tmp_path, text)
    assert words in str(raised.value)
