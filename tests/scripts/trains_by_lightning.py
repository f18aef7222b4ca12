"""Habit: Lightning finds its place by torchrun's variables, and shards the data itself."""

# ruff: noqa: E402

import gc
import json
import logging
import os
import warnings
from pathlib import Path

gc.disable()  # the imports take a quarter less CPU

import lightning
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.plugins.environments import TorchElasticEnvironment

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
torch.set_num_threads(1)
lightning.seed_everything(7, verbose=False)
model = BoringModel()
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
trainer = lightning.Trainer(
    max_steps=4, limit_val_batches=0, accelerator="cpu", devices=int(os.environ["LOCAL_WORLD_SIZE"]), **quiet
)
trainer.fit(model)
found = {
    "environment": isinstance(trainer.strategy.cluster_environment, TorchElasticEnvironment),
    "rank": [trainer.global_rank, trainer.local_rank, trainer.world_size],
    "strategy": type(trainer.strategy).__name__,
    "weights": [round(float(value), 6) for value in model.layer.weight.flatten()[:4]],
}
Path(f"trained-{trainer.global_rank}.json").write_text(json.dumps(found))
