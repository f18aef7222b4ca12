"""Weights in the layout of Hugging Face: read at the start of a run, written from a checkpoint.

    launcher run train.init_from=FOLDER …                              (config.json, *.safetensors; Llama and GPT-2)
    python -m launcher.worker.model.huggingface RUN/checkpoints/step-… OUT   (a folder that transformers reads)

Nothing here needs a process group: a checkpoint holds whole tensors in pieces, whatever layout saved it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from launcher.errors import InputError
from launcher.model import Model
from launcher.run.checkpoints import PREFIX, read_manifest
from launcher.worker.checkpoint.checksum import file_problem

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
_LLAMA = {
    "tokens.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    **{f"attention.{name}": f"self_attn.{name}_proj" for name in ("q", "k", "v", "o")},
    **{f"mlp.{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
_GPT2 = {
    "tokens.weight": "transformer.wte.weight",
    "positions.weight": "transformer.wpe.weight",
    "norm.weight": "transformer.ln_f.weight",
    "norm.bias": "transformer.ln_f.bias",
    "head.weight": "lm_head.weight",
    "norm1": "ln_1",
    "norm2": "ln_2",
    "attention.o": "attn.c_proj",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}


@dataclass(frozen=True)
class TheirParameter:
    """The counterpart of one of our parameters: its name, whether it is transposed, which third of a joint one."""

    name: str
    transposed: bool = False
    part: int | None = None


def family(model: Model) -> str:
    """`llama` or `gpt2`; raises InputError for a shape that is neither."""
    shape = (model.norm, model.positions, model.gated_mlp, model.bias)
    if shape == ("rmsnorm", "rotary", True, False):
        return "llama"
    whole = model.kv_heads == model.heads and model.attention_hidden == model.hidden
    if shape == ("layernorm", "learned", False, True) and whole:
        return "gpt2"
    raise InputError(
        f"{model.name} is neither Llama- nor GPT-2-shaped (norm={model.norm}, positions={model.positions}, "
        f"gated_mlp={model.gated_mlp}, bias={model.bias}, head_dim={model.head_dim}): there is no "
        "Hugging Face layout for it here"
    )


def place(name: str, kind: str) -> TheirParameter:
    """Return the counterpart of our parameter `name` in a model of `kind`."""
    names = _LLAMA if kind == "llama" else _GPT2
    if not name.startswith("layers."):
        return TheirParameter(names[name])
    _, layer, rest = name.split(".", 2)
    module, _, leaf = rest.rpartition(".")
    if kind == "llama":
        return TheirParameter(f"model.layers.{layer}.{names[module]}.{leaf}")
    transposed = leaf == "weight" and not module.startswith("norm")  # GPT-2's Conv1D keeps (in, out)
    if module in ("attention.q", "attention.k", "attention.v"):
        return TheirParameter(f"transformer.h.{layer}.attn.c_attn.{leaf}", transposed, "qkv".index(module[-1]))
    return TheirParameter(f"transformer.h.{layer}.{names[module]}.{leaf}", transposed)


class FolderWeights:
    """Reads our parameters out of a Hugging Face folder, one at a time. Raises InputError where they do not fit."""

    def __init__(self, folder: Path, *, model: Model) -> None:
        self._kind, self._folder, self._model = family(model), folder, model
        self._files = weight_files(folder)
        problems = config_problems(_read_json(folder / CONFIG), model, kind=self._kind, folder=folder)
        if problems:
            raise InputError(problems)

    def __call__(self, name: str, shape: Sequence[int]) -> Tensor:
        """The whole fp32 value of our parameter `name`."""
        at = place(name, self._kind)
        file = self._files.get(at.name) or self._files.get(at.name.removeprefix("transformer."))
        if file is None:
            raise InputError(f"{self._folder} has no tensor {at.name}, which {name} is read from")
        stored = at.name if at.name in self._files else at.name.removeprefix("transformer.")
        with safe_open(file, framework="pt") as tensors:
            value: Tensor = tensors.get_tensor(stored).float()
        value = value.t() if at.transposed else value
        if at.part is not None:
            value = value.chunk(3)[at.part]
        if list(value.shape) != list(shape):
            raise InputError(f"{stored} of {file} has shape {list(value.shape)}, {name} needs {list(shape)}")
        return value.contiguous()


def weight_files(folder: Path) -> dict[str, Path]:
    """Tensor name → file, from the index or the one file; raises InputError where there is neither."""
    if (folder / INDEX).is_file():
        mapping = _read_json(folder / INDEX)["weight_map"]
        return {name: folder / Path(file).name for name, file in mapping.items()}
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder} has neither {WEIGHTS} nor {INDEX}: give a Hugging Face folder with safetensors")
    with safe_open(folder / WEIGHTS, framework="pt") as tensors:
        return dict.fromkeys(tensors.keys(), folder / WEIGHTS)


def config_of(model: Model) -> dict[str, Any]:
    """The config.json that transformers needs to build `model`."""
    if family(model) == "llama":
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": model.hidden,
            "num_hidden_layers": model.layers,
            "num_attention_heads": model.heads,
            "num_key_value_heads": model.kv_heads,
            "head_dim": model.head_dim,
            "intermediate_size": model.ffn_hidden,
            "vocab_size": model.vocab,
            "max_position_embeddings": model.seq_len,
            "rms_norm_eps": model.norm_eps,
            "rope_theta": model.rope_theta,
            "tie_word_embeddings": model.tied_embeddings,
            "hidden_act": "silu",
        }
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": model.hidden,
        "n_layer": model.layers,
        "n_head": model.heads,
        "n_inner": model.ffn_hidden,
        "vocab_size": model.vocab,
        "n_positions": model.seq_len,
        "layer_norm_epsilon": model.norm_eps,
        "tie_word_embeddings": model.tied_embeddings,
        "activation_function": "gelu_new",
    }


def config_problems(found: Mapping[str, Any], model: Model, *, kind: str, folder: Path) -> list[str]:
    """What in a folder's config.json is another model; keys that it leaves out are not judged."""
    wanted = config_of(model)
    theirs = dict(found)
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    theirs.setdefault("rope_theta", rope.get("rope_theta", wanted.get("rope_theta")))
    ignored = {"architectures", "max_position_embeddings", "n_positions" if kind == "llama" else ""}
    problems = [
        f"{folder / CONFIG} has {key}={theirs[key]!r}, {model.name} needs {value!r}: choose the model's shape to match"
        for key, value in wanted.items()
        if key not in ignored and theirs.get(key) is not None and theirs[key] != value
    ]
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        problems.append(f"{folder / CONFIG} scales its rotary angles ({rope}), which this model does not do")
    return problems


def export(checkpoint: Path, out: Path) -> Path:
    """Write a checkpoint as a Hugging Face folder; raises InputError where it is damaged or `out` exists."""
    manifest = read_manifest(checkpoint)
    problems = [p for name, recorded in manifest["files"].items() if (p := file_problem(checkpoint, name, recorded))]
    if out.exists():
        problems.append(f"{out} exists: give the name of a new folder")
    if problems:
        raise InputError(problems)
    model = Model(name="exported", **manifest["job"]["model"])
    tensors = to_huggingface(model, lambda name: read_tensor(checkpoint, manifest["tensors"][f"{PREFIX}.model.{name}"]))
    temporary = out.with_name(f".{out.name}.writing")
    temporary.mkdir(parents=True)
    save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
    (temporary / CONFIG).write_text(json.dumps(config_of(model), indent=1) + "\n", encoding="utf-8")
    temporary.rename(out)
    return out


def to_huggingface(model: Model, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """All parameters under their Hugging Face names; `read` gives one of ours by name."""
    from launcher.worker.model.transformer import StageShape, Transformer

    kind = family(model)
    with torch.device("meta"):
        names = [name for name, _ in Transformer(model, StageShape.whole(model)).named_parameters()]
    parts: dict[str, dict[int, Tensor]] = {}
    found: dict[str, Tensor] = {}
    for name in names:
        if model.tied_embeddings and name == "head.weight":
            continue
        at, value = place(name, kind), read(name)
        if at.part is None:
            found[at.name] = (value.t() if at.transposed else value).contiguous()
        else:
            parts.setdefault(at.name, {})[at.part] = value
    for name, thirds in parts.items():
        joint = torch.cat([thirds[i] for i in range(3)])
        found[name] = (joint.t() if joint.dim() == 2 else joint).contiguous()
    return found


def read_tensor(checkpoint: Path, entry: Mapping[str, Any]) -> Tensor:
    """One whole tensor of a checkpoint, put together from its pieces."""
    dtype = getattr(torch, entry["dtype"])
    whole = torch.empty(entry["shape"], dtype=dtype)
    for chunk in entry["chunks"]:
        with (checkpoint / chunk["file"]).open("rb") as file:
            file.seek(chunk["offset"])
            data = bytearray(file.read(chunk["length"]))
        target = whole
        for dim, (start, size) in enumerate(zip(chunk["offsets"], chunk["sizes"], strict=True)):
            target = target.narrow(dim, start, size)
        if data:
            target.copy_(torch.frombuffer(data, dtype=dtype).view(chunk["sizes"]))
    return whole


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path} ({error})") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} holds no object")
    return document


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m launcher.worker.model.huggingface", description="Export a checkpoint."
    )
    parser.add_argument("checkpoint", type=Path, help="the folder of one checkpoint of a run")
    parser.add_argument("out", type=Path, help="the folder to write")
    parsed = parser.parse_args(arguments)
    try:
        print(export(parsed.checkpoint, parsed.out))
    except InputError as error:
        parser.exit(error.exit_code, f"error: {error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
