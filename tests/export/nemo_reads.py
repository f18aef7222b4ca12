"""Run with Megatron Bridge and its core on the path: its own override parser and dataclasses read plans' overrides, its
own checks accept them, its core says ranks and stages.

Standard input: a list of {"world_size", "environment", "recipe", "overlap", "words"}, `recipe` being the shape of a
named recipe, which comes from Hugging Face's server, `overlap` whether it has a CommOverlapConfig; standard output: a
JSON document for each, as a list. What a machine without GPUs lacks is replaced by a stub: a configuration is read,
nothing is computed.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from types import SimpleNamespace
from typing import Any

from megatron_reads import groups, pretend_a_gpu, stages

STUBS = ("triton", "transformer_engine", "datasets", "six", "megatron.energon")
# Bridge 0.3.1, the newest on PyPI, has the field of Megatron's core alone; 0.7 fills that from its own.
RENAMED = {"dataset.seq_length": "dataset.sequence_length"}


def configuration(recipe: dict[str, int], words: list[str], *, overlap: bool) -> Any:
    """The configuration of a GPT, with the overrides read into it, finalized and checked."""
    from megatron.bridge.models import GPTModelProvider
    from megatron.bridge.recipes.common import _pretrain_common
    from megatron.bridge.training.comm_overlap import CommOverlapConfig
    from megatron.bridge.training.utils.omegaconf_utils import process_config_with_overrides

    config = _pretrain_common()
    config.model = GPTModelProvider(**recipe)
    config.tokenizer.tokenizer_type = "NullTokenizer"
    config.comm_overlap = CommOverlapConfig(tp_comm_overlap=False) if overlap else None
    config = process_config_with_overrides(config, cli_overrides=words)
    config.validate()
    return config


def read(asked: dict[str, Any]) -> dict[str, Any]:
    os.environ.pop("CUDA_DEVICE_MAX_CONNECTIONS", None)
    os.environ.update(asked["environment"], WORLD_SIZE=str(asked["world_size"]))
    pairs = [word.split("=", 1) for word in asked["words"]]
    words = [f"{RENAMED.get(key, key)}={value}" for key, value in pairs]
    config = configuration(asked["recipe"], words, overlap=asked["overlap"])
    model = config.model
    degrees = SimpleNamespace(
        **{name: value for name, value in vars(model).items() if name.endswith("_parallel_size")},
        use_tp_pp_dp_mapping=config.dist.use_tp_pp_dp_mapping,
        data_parallel_size=config.data_parallel_size,
        world_size=asked["world_size"],
    )
    pp, virtual = model.pipeline_model_parallel_size, model.virtual_pipeline_model_parallel_size
    said = {key: value_of(config, RENAMED.get(key, key)) for key, _ in pairs}
    return {"said": said, "groups": groups(degrees), "stages": stages(model, pp, virtual)}


def value_of(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


def main() -> None:
    every = json.load(sys.stdin)
    pretend_a_gpu(STUBS)
    with contextlib.redirect_stdout(sys.stderr):
        found = [read(asked) for asked in every]
    print(json.dumps(found, default=str))


if __name__ == "__main__":
    main()
