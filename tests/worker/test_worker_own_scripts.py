"""Scripts that know nothing of the launcher run unchanged: in the manner of nanoGPT, of Hugging Face, with Hydra."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import preloaded
import pytest

LAUNCHER = [sys.executable, "-c", "from launcher.cli import main; raise SystemExit(main())", "run", "tracking=none"]
TWO_RANKS = ["cluster.node.num_gpus=2", "layout.tp=1", "layout.dp=2", "layout.pp=1"]

NANOGPT = """
# Settings as globals, overridden by --name=value; ranks from torchrun's environment (as karpathy/nanoGPT's train.py)
import os, sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

max_iters = 3
learning_rate = 1e-1
for arg in sys.argv[1:]:
    key, value = arg.lstrip("-").split("=")
    assert key in globals(), f"unknown key {key}"
    globals()[key] = type(globals()[key])(value)

ddp = int(os.environ.get("RANK", -1)) != -1
assert ddp, "must be started as a rank"
dist.init_process_group(backend="gloo")
rank, local_rank, world_size = (int(os.environ[k]) for k in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
torch.manual_seed(1337 + rank)
model = DDP(torch.nn.Linear(8, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
for iter_num in range(max_iters):
    loss = model(torch.ones(4, 8)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
if rank == 0:
    print(f"iter {max_iters}: loss {loss.item():.4f}, world {world_size}, layout dp{os.environ['LAUNCHER_DP']}")
dist.destroy_process_group()
"""

HUGGING_FACE = """
# argparse like transformers' example scripts, a model of transformers, ranks by accelerate-like environment reading
import argparse, json, os
import torch
import torch.distributed as dist
import transformers


def parse_args():
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--per_device_train_batch_size", type=int, default=8)
    parser.add_argument("--max_train_steps", type=int, default=2)
    return parser.parse_args()


def main():
    args = parse_args()
    dist.init_process_group("gloo", init_method="env://")
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32, n_positions=16)
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(transformers.GPT2LMHeadModel(config))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(args.max_train_steps):
        ids = torch.full((args.per_device_train_batch_size, 16), dist.get_rank() + 1)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    if dist.get_rank() == 0:
        os.makedirs(args.output_dir, exist_ok=True)
        with open(os.path.join(args.output_dir, "all_results.json"), "w") as file:
            json.dump({"losses": losses, "world_size": dist.get_world_size()}, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
"""

HYDRA = """
import os
import hydra
from omegaconf import OmegaConf


@hydra.main(version_base="1.3", config_path=None, config_name=None)
def main(cfg):
    print(f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}: {OmegaConf.to_container(cfg)}")


if __name__ == "__main__":
    main()
"""


def launch(script: Path, *args: str, preload: str = "") -> subprocess.CompletedProcess[str]:
    folder = f"run_dir={script.parent / 'run'}"
    command = [*LAUNCHER, *TWO_RANKS, f"launch.preload=[{preload}]", f"script={script}", folder, "--", *args]
    return preloaded.run(command, capture_output=True, text=True, timeout=200, cwd=script.parent)


def write(folder: Path, text: str) -> Path:
    path = folder / "train.py"
    path.write_text(text)
    return path


@pytest.mark.slow
def test_a_script_in_the_manner_of_nanogpt_runs_unchanged(tmp_path: Path) -> None:
    done = launch(write(tmp_path, NANOGPT), "--max_iters=5", "--learning_rate=0.05")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "iter 5: loss" in done.stdout and "world 2, layout dp2" in done.stdout


@pytest.mark.slow
def test_a_script_in_the_manner_of_hugging_face_runs_unchanged(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    script, own = write(tmp_path, HUGGING_FACE), ["--output_dir", str(tmp_path / "out"), "--max_train_steps", "4"]
    done = launch(script, *own, preload="transformers.models.gpt2.modeling_gpt2")
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["world_size"] == 2 and results["losses"][-1] < results["losses"][0]


@pytest.mark.slow
def test_a_hydra_script_gets_its_own_overrides(tmp_path: Path) -> None:
    done = launch(write(tmp_path, HYDRA), "+lr=0.1", "hydra.run.dir=.", "hydra.output_subdir=null")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rank 0 of 2: {'lr': 0.1}" in done.stdout
