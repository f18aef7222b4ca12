"""Habit: Hugging Face's Trainer, which starts accelerate and the process group itself; then accelerate's own tests."""

# ruff: noqa: E402

import gc
import json
import sys
from pathlib import Path

gc.disable()  # the imports take a quarter less CPU
sys.modules["deepspeed"] = None  # as where there is none: accelerate would import it, for a second of CPU

import torch
from accelerate.test_utils.scripts import test_script
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

torch.set_num_threads(1)
torch.manual_seed(7)
data = [{"input_ids": row, "labels": row} for row in torch.randint(0, 50, (32, 16), generator=torch.Generator())]
arguments = TrainingArguments(
    sys.argv[1], max_steps=4, per_device_train_batch_size=2, use_cpu=True, report_to=[], logging_steps=1,
    save_strategy="no", disable_tqdm=True, dataloader_num_workers=0, seed=7,
)  # fmt: skip
model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2))
trainer = Trainer(model, arguments, train_dataset=data)
trainer.train()
losses = [round(line["loss"], 4) for line in trainer.state.log_history if "loss" in line]
found = {"rank": [arguments.process_index, arguments.world_size, arguments.local_process_index], "losses": losses}
Path(f"trained-{arguments.process_index}.json").write_text(json.dumps(found))
test_script.main()
