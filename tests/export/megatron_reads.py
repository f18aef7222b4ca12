"""Run in a checkout of Megatron-LM: its own parser and checks read flags, its own code says ranks and stages.

Standard input: a list of {"world_size", "environment", "words"}; standard output: a JSON document for each, as a list.
What a machine without GPUs lacks (triton, a CUDA device) is a stub: arguments are parsed, nothing is computed.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import json
import os
import sys
import types
import typing
from typing import Any

AXES = ("tp", "cp", "dp", "pp")


class AnyAttribute(type):
    def __getattr__(cls, name: str) -> Any:
        return _attribute(name)

    def __getitem__(cls, kind: Any) -> Any:
        return cls


class Anything(metaclass=AnyAttribute):
    """Stub for what a stubbed module has."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and isinstance(args[0], types.FunctionType) else super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return Anything(*args)

    def __getattr__(self, name: str) -> Any:
        return Anything()


class Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an empty module for every import of these packages, and below them."""

    def __init__(self, packages: tuple[str, ...]) -> None:
        self.packages = packages

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        own = any(f"{name}.".startswith(f"{package}.") for package in self.packages)
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if own else None

    def create_module(self, spec: Any) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__dict__.update(__path__=[], __version__="3.5.0")
        module.__dict__["__getattr__"] = _attribute
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def _attribute(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (Anything,), {})


def pretend_a_gpu(packages: tuple[str, ...]) -> None:
    """Stub these packages, and what CUDA says of a device."""
    if not hasattr(typing, "override"):
        typing.override = lambda function: function  # type: ignore[attr-defined]
    import torch
    import torch._inductor.compile_fx  # before triton seems to be there

    torch.cuda.get_device_capability = lambda *_: (8, 0)
    torch.cuda.get_device_properties = lambda *_: types.SimpleNamespace(major=8, minor=0)
    sys.meta_path.insert(0, Stubs(packages))


def arguments(asked: dict[str, Any]) -> Any:
    """The flags as Megatron-LM reads and checks them."""
    os.environ.pop("CUDA_DEVICE_MAX_CONNECTIONS", None)
    os.environ.update(asked["environment"], WORLD_SIZE=str(asked["world_size"]))
    sys.argv = ["pretrain_gpt.py", *asked["words"]]
    from megatron.training.arguments import parse_args, validate_args

    parsed = parse_args()
    validate_args(parsed)
    return parsed


def groups(parsed: Any) -> dict[str, list[list[int]]]:
    """The rank groups of every axis, and of the experts."""
    from megatron.core.parallel_state import RankGenerator

    order = "tp-cp-ep-pp-dp" if parsed.use_tp_pp_dp_mapping else "tp-cp-ep-dp-pp"
    pp, tp, ep = (
        parsed.pipeline_model_parallel_size,
        parsed.tensor_model_parallel_size,
        parsed.expert_model_parallel_size,
    )
    cp, dp = parsed.context_parallel_size, parsed.data_parallel_size
    ranks = RankGenerator(tp=tp, ep=1, dp=dp, pp=pp, cp=cp, order=order)
    etp = parsed.expert_tensor_parallel_size
    experts = RankGenerator(tp=etp, ep=ep, dp=parsed.world_size // (etp * ep * pp), pp=pp, cp=1, order=order)
    return {axis: ranks.get_ranks(axis) for axis in AXES} | {"ep": experts.get_ranks("ep") if ep > 1 else []}


def transformer_config(parsed: Any) -> Any:
    from megatron.training.arguments import core_transformer_config_from_args

    parsed.apply_rope_fusion = parsed.moe_grouped_gemm = False  # they ask for Transformer Engine and a GPU
    return core_transformer_config_from_args(parsed)


def stages(config: Any, pp: int, virtual: int | None) -> list[int]:
    """Layers of each virtual stage, in pipeline order."""
    import megatron.core.parallel_state as state
    from megatron.core.transformer.transformer_block import get_num_layers_to_build

    state.set_pipeline_model_parallel_world_size(pp)
    state.set_virtual_pipeline_model_parallel_world_size(virtual)
    found = []
    for number in range(pp * (virtual or 1)):
        state.get_pipeline_model_parallel_rank = lambda number=number: number % pp
        stage = number // pp if virtual else None
        found.append(get_num_layers_to_build(config, vp_stage=stage, pp_rank=number % pp))
    return found


def read(asked: dict[str, Any]) -> dict[str, Any]:
    parsed = arguments(asked)
    found = {name: value for name, value in vars(parsed).items() if isinstance(value, int | float | str | None)}
    pp, virtual = parsed.pipeline_model_parallel_size, parsed.virtual_pipeline_model_parallel_size
    layers = stages(transformer_config(parsed), pp, virtual)
    return {"arguments": found, "groups": groups(parsed), "stages": layers}


def main() -> None:
    every = json.load(sys.stdin)
    pretend_a_gpu(("triton",))
    with contextlib.redirect_stdout(sys.stderr):
        found = [read(asked) for asked in every]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
