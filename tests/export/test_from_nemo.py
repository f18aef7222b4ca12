"""`plan from=FILE` of NeMo's and Megatron Bridge's configurations, and of torchtitan's TOML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from export_plans import PLANS, plan_of

from launcher.cli import main
from launcher.config.compose import load
from launcher.errors import InputError
from launcher.export import nemo
from launcher.export.readers import read_from
from launcher.export.reading import Reading
from launcher.planner.habits import nested

BARE = ("plain dp", "virtual stages", "uneven ends", "experts", "virtual stages unsharded")
# Parts of NeMo 1's megatron_gpt_config.yaml.
NEMO_1 = """
name: megatron_gpt
trainer: {devices: 8, num_nodes: 4, accelerator: gpu, precision: bf16, max_steps: 100000}
model:
  mcore_gpt: True
  micro_batch_size: 4
  global_batch_size: 256
  tensor_model_parallel_size: 4
  pipeline_model_parallel_size: 2
  virtual_pipeline_model_parallel_size: null
  encoder_seq_length: 2048
  max_position_embeddings: ${.encoder_seq_length}
  num_layers: 24
  hidden_size: 2048
  ffn_hidden_size: 8192
  num_attention_heads: 16
  activation: fast-swiglu
  normalization: rmsnorm
  position_embedding_type: rope
  bias: False
  share_embeddings_and_output_weights: False
  sequence_parallel: True
  activations_checkpoint_granularity: full
  activations_checkpoint_method: block
  activations_checkpoint_num_layers: 6
  optim: {name: distributed_fused_adam, lr: 2e-4}
"""
TOML = """
[model]
name = "llama3"
flavor = "8B"
converters = ["float8"]
[training]
local_batch_size = 2
seq_len = 8192
[parallelism]
data_parallel_replicate_degree = 2
data_parallel_shard_degree = 4
tensor_parallel_degree = 2
enable_async_tensor_parallel = false
[compile]
enable = true
components = ["model", "loss"]
[activation_checkpoint]
mode = "selective"
selective_ac_option = "2"
"""
EARLY = """
[training]
batch_size = 1
seq_len = 4096
data_parallel_degree = -1
tensor_parallel_degree = 8
[experimental]
pipeline_parallel_degree = 2
enable_async_tensor_parallel = true
[activation_checkpoint]
mode = "full"
"""


def read(folder: Path, text: str, name: str = "file") -> Reading:
    (folder / name).write_text(text)
    return read_from(folder / name)


def test_megatron_bridges_yaml_is_read_as_its_overrides_are(tmp_path: Path) -> None:
    plan = plan_of("virtual stages", "stack=megatron_lm", "stack.fused_rotary=false")
    config = nested(dict(nemo.settings(plan)))
    config["model"]["_target_"] = "megatron.bridge.models.gpt_provider.GPTModelProvider"
    found = read(tmp_path, yaml.safe_dump(config))
    lines = read(tmp_path, nemo.write(plan).files[nemo.OVERRIDES])
    assert found.keys == lines.keys
    assert found.keys["layout.virtual_stages"] == 4 and found.keys["stack.fused_rotary"] is False


@pytest.mark.parametrize("name", BARE)
def test_a_bare_recipe_is_read_back_as_the_same_model(name: str, tmp_path: Path) -> None:
    plan = plan_of(name)
    assert name in PLANS and nemo.recipe(plan) == nemo.BARE
    keys = read(tmp_path, nemo.write(plan).files["start.sh"]).keys
    model = load(Reading("nemo", {key: value for key, value in keys.items() if key.startswith("model")}).overrides())
    assert model.job.model.params == plan.job.model.params


def test_a_named_recipe_is_the_model(tmp_path: Path) -> None:
    found = read(tmp_path, nemo.write(plan_of("context")).files["start.sh"])
    assert found.keys["model"] == "llama3_8b" and not any("shape" in line for line in found.unread)


def test_nemo_1_is_read(tmp_path: Path) -> None:
    keys: dict[str, Any] = read(tmp_path, NEMO_1).keys
    wanted = {
        "cluster.num_nodes": 4, "cluster.node.num_gpus": 8, "layout.tp": 4, "layout.pp": 2, "layout.micro_batch": 4,
        "train.global_batch": 256, "train.dtype": "bf16", "layout.zero_stage": 1, "layout.sequence_parallel": True,
        "layout.recompute": "full", "layout.recompute_fraction": 0.5, "model.layers": 24, "model.seq_len": 2048,
        "model.gated_mlp": True, "model.norm": "rmsnorm", "model.bias": False, "model.tied_embeddings": False,
    }  # fmt: skip
    assert {key: keys.get(key) for key in wanted} == wanted


def test_overrides_of_a_named_configuration_pin_what_they_say_alone(tmp_path: Path) -> None:
    script = (
        "srun python megatron_gpt_pretraining.py --config-path conf --config-name gpt_5b trainer.devices=8 \\\n"
        "  model.micro_batch_size=2 ++model.tensor_model_parallel_size=4 model.data.data_prefix=[a]"
    )
    found = read(tmp_path, script)
    assert found.keys["layout.tp"] == 4 and found.keys["layout.micro_batch"] == 2
    assert not {"train.dtype", "layout.zero_stage", "layout.recompute", "layout.sequence_parallel"} & set(found.keys)
    assert any(line.startswith("what gpt_5b says") for line in found.unread)
    assert any(line.startswith("what the recipe says") for line in found.unread)


def test_toml_of_torchtitan_is_read(tmp_path: Path) -> None:
    found = read(tmp_path, TOML)
    keys = found.keys
    assert (keys["layout.tp"], keys["layout.zero_stage"], keys["layout.shard_group"]) == (2, 3, 4)
    assert (keys["layout.micro_batch"], keys["model.seq_len"], keys["stack.compile"]) == (2, 8192, True)
    assert (keys["layout.recompute"], keys["layout.recompute_fraction"]) == ("full", 0.5)
    assert keys.get("stack.tp_overlap") != "async"  # it says false
    assert "the model llama3 8B: give model=NAME" in found.unread
    assert any("float8" in line for line in found.unread)


def test_earlier_names_of_torchtitan_are_read(tmp_path: Path) -> None:
    keys = read(tmp_path, EARLY).keys
    assert (keys["layout.tp"], keys["layout.pp"], keys["layout.zero_stage"]) == (8, 2, 2)
    assert (keys["layout.recompute"], keys["stack.tp_overlap"]) == ("full", "async")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[training]\nseq_len = \n", "is not valid TOML"),
        ("import nemo_run as run\nrecipe = llm.llama3_8b.pretrain_recipe()\n", "config.to_yaml()"),
        ("model: {tensor_model_parallel_size: some}\n", "must be a whole number"),
        ("model: {name: x}\ntrainer: {devices: 8}\n", "which no reader knows"),
        ("", "is empty"),
        ("  \n", "is empty"),
    ],
)
def test_what_cannot_be_read_is_one_message(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        read(tmp_path, text)
    assert words in str(raised.value)


def test_settings_of_torchtitan_that_are_not_known_are_named(tmp_path: Path) -> None:
    found = read(tmp_path, TOML.replace("[parallelism]", "[parallelism]\nnew_degree = 2\ndisable_loss_parallel = true"))
    assert "settings that are not known here: parallelism.new_degree" in found.unread
    assert not any("not known here" in line for line in read(tmp_path, TOML).unread)


WORLD = ["cluster=dgx_a100_80g", "model=llama2_7b", "train.global_batch=64", "output=json"]


@pytest.mark.parametrize(
    "text",
    [
        "python pretrain_gpt.py --tensor-model-parallel-size 3 --bf16",
        "torchrun -m torchtitan.train --parallelism.tensor_parallel_degree 3",
        "[parallelism]\ntensor_parallel_degree = 3\n",
        "model: {tensor_model_parallel_size: 3}\n",
        "python run_recipe.py model.tensor_model_parallel_size=3",
        '{"train_micro_batch_size_per_gpu": 1, "tensor_parallel": {"autotp_size": 3}}',
        "distributed_type: FSDP\nnum_processes: 8\nparallelism_config: {parallelism_config_tp_size: 3}\n",
        '{"per_device_train_batch_size": 1, "fsdp": true, "parallelism_config": {"tp_size": 3}}',
    ],
)
def test_degrees_that_contradict_the_ranks_are_one_message(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text(text)
    assert main(["plan", f"from={tmp_path / 'file'}", *WORLD]) == 2
    out, err = capsys.readouterr()
    assert "3" in out and "Traceback" not in out + err


def test_bytes_are_no_text(tmp_path: Path) -> None:
    for data in (b"\xff\xfe\x00\x01", b"--tensor-model-parallel-size\x00 4"):
        (tmp_path / "file").write_bytes(data)
        with pytest.raises(InputError, match="is no text"):
            read_from(tmp_path / "file")
