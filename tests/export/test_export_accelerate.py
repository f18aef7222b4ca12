"""accelerate's own launcher reads the exported configuration; the mesh that it builds has the plan's rank order."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from export_plans import PLANS, plan_of
from torch.testing._internal.distributed.fake_pg import FakeStore

from launcher.export import accelerate
from launcher.planner.record import Plan

pytestmark = pytest.mark.skipif(not find_spec("accelerate"), reason="no accelerate")
SAID = {name: plan for name in PLANS if not list(accelerate.cannot((plan := plan_of(name)).job, plan.layout))}


def read(plan: Plan, folder: Path) -> tuple[Any, dict[str, str]]:
    """What `accelerate launch` makes of the export: its arguments, and the environment that it gives every rank."""
    from accelerate.commands import launch
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    export = accelerate.write(plan)
    for name, text in export.files.items():
        (folder / name).write_text(text)
    words = ["--config_file", str(folder / accelerate.CONFIG), "--machine_rank", "0", "--main_process_ip", "node0"]
    started: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        for launcher in ("deepspeed_launcher", "multi_gpu_launcher", "simple_launcher"):
            patch.setattr(launch, launcher, started.append)
        launch.launch_command(launch.launch_command_parser().parse_args([*words, "train.py"]))
    (arguments,) = started
    if arguments.use_deepspeed:
        return arguments, prepare_deepspeed_cmd_env(arguments)[1]
    return arguments, prepare_multi_gpu_env(arguments)


def test_plans_of_every_kind_are_said_and_others_refused_with_a_reason() -> None:
    assert set(SAID) == {"plain dp", "zero3", "zero2", "zero1", "zero3 with tp", "context"}


@pytest.mark.parametrize("name", SAID)
def test_accelerate_reads_machines_processes_and_precision(name: str, tmp_path: Path) -> None:
    plan = SAID[name]
    arguments, environment = read(plan, tmp_path)
    assert (arguments.num_machines, arguments.num_processes) == (plan.placement.num_nodes, plan.layout.world_size)
    assert int(arguments.nproc_per_node) == plan.placement.ranks_per_node
    assert arguments.rdzv_backend == "static"
    if plan.placement.num_nodes > 1:
        assert (arguments.rdzv_endpoint, arguments.node_rank) == ("node0:29500", 0)
    kinds = {"plain dp": "multi_gpu", "zero1": "use_deepspeed"}
    assert getattr(arguments, kinds.get(name, "use_fsdp")) is True
    if name != "zero1":
        assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"


@pytest.mark.parametrize(("compiled", "backend"), [("true", "INDUCTOR"), ("false", "no")])
def test_accelerate_compiles_where_the_plan_does(compiled: str, backend: str, tmp_path: Path) -> None:
    arguments, environment = read(plan_of("zero3", "stack=fsdp", f"stack.compile={compiled}"), tmp_path)
    assert arguments.dynamo_backend == backend
    assert environment["ACCELERATE_DYNAMO_BACKEND"] == backend.upper()


def test_full_precision_is_a_word_and_not_false(tmp_path: Path) -> None:
    _, environment = read(plan_of("plain dp", "train.dtype=fp32"), tmp_path)
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"


@pytest.mark.parametrize("name", ["zero2", "zero3", "zero3 with tp", "context"])
def test_the_mesh_of_accelerate_is_the_plans_grid(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.parallelism_config import ParallelismConfig
    from accelerate.utils import FullyShardedDataParallelPlugin

    plan = SAID[name]
    for key, value in read(plan, tmp_path)[1].items():
        monkeypatch.setenv(key, value)
    config, sharding = ParallelismConfig(), FullyShardedDataParallelPlugin()
    assert sharding.fsdp_version == 2
    assert sharding.reshard_after_forward is (plan.layout.zero_stage == 3)
    assert sharding.activation_checkpointing is (plan.layout.recompute == "full")
    for rank in (0, 1, plan.layout.world_size // 2 + 1, plan.layout.world_size - 1):
        assert coordinate(config, rank, plan.layout.world_size) == plan.grid.coordinate(rank) | {"pp": 0}


def coordinate(config: Any, rank: int, world_size: int) -> dict[str, int]:
    """Where accelerate's mesh puts a rank, in our axes."""
    with process_group(rank, world_size):
        mesh = config.build_device_mesh("cpu")
        names = mesh.mesh_dim_names or ()
        found = dict(zip(names, mesh.get_coordinate(), strict=True))
    return {"tp": found.get("tp", 0), "cp": found.get("cp", 0), "dp": found.get("dp_shard", 0), "pp": 0}


@contextmanager
def process_group(rank: int, world_size: int) -> Iterator[None]:
    """One process that poses as a rank of a world."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def test_accelerates_deepspeed_plugin_takes_the_whole_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("deepspeed")
    from accelerate.utils import DeepSpeedPlugin

    plan = SAID["zero1"]
    for key, value in read(plan, tmp_path)[1].items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(tmp_path)
    plugin = DeepSpeedPlugin()
    written = json.loads((tmp_path / accelerate.DEEPSPEED_CONFIG).read_text())
    written["steps_per_print"] = float("inf")  # accelerate prints itself
    assert {key: plugin.deepspeed_config[key] for key in written} == written
    assert plugin.deepspeed_config["zero_optimization"]["stage"] == 1
    assert os.environ["ACCELERATE_USE_DEEPSPEED"] == "true"
