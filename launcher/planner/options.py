"""The keys that ranks read: `train.*` except those of speed and memory, `tracking.*`, `recipe.*`. Torch-free."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from launcher.cluster.measured import OPERATIONS
from launcher.errors import InputError
from launcher.model.training import DTYPES, ENGINES, Training
from launcher.resources import recipe_file
from launcher.schema import AUTO, key, nearest, read

LR_SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class TrainOptions:
    """The keys of `train.*` that an estimate does not need; `Training` has the others."""

    steps: int = key(80, unit="steps", minimum=1, meaning="steps of the training")
    lr: float = key(2e-3, unit="1", minimum=0, meaning="peak learning rate")
    min_lr: float = key(2e-4, unit="1", minimum=0, meaning="final value of the cosine")
    lr_schedule: str = key("cosine", choices=LR_SCHEDULES, meaning="learning rate after the warm-up")
    warmup_steps: int = key(10, unit="steps", minimum=0, meaning="steps over which the learning rate rises")
    weight_decay: float = key(0.1, unit="1", minimum=0, meaning="applied to matrices only, not to norms and biases")
    beta1: float = key(0.9, unit="1", minimum=0, below=1, meaning="Adam's decay of the mean of gradients")
    beta2: float = key(0.95, unit="1", minimum=0, below=1, meaning="Adam's decay of the mean of their squares")
    momentum: float = key(0.0, unit="1", minimum=0, meaning="of optimizer sgd")
    grad_clip: float = key(1.0, unit="1", minimum=0, meaning="maximum norm of the whole model's gradient; 0: off")
    seed: int = key(1234, unit="1", minimum=0, meaning="seed of the weights and of the order of the data")
    init_from: str | None = key(
        None,
        meaning="Hugging Face folder with safetensors (Llama, GPT-2) to start from; null: drawn from the seed",
    )  # fmt: skip
    data: str | None = key(None, meaning="token file; null: the Python standard library's source, as bytes")
    log_every: int = key(1, unit="steps", minimum=1, meaning="steps between lines if the output is not a terminal")
    checkpoint_every: int = key(0, unit="steps", minimum=0, meaning="steps between checkpoints; 0: none")
    checkpoint_async: bool = key(True, meaning="write checkpoints in the background")
    keep_last: int = key(2, unit="checkpoints", minimum=1, meaning="number of newest checkpoints to keep")
    keep_every: int = key(
        0, unit="steps", minimum=0,
        meaning="also keep every checkpoint at a multiple of this; 0: none",
    )  # fmt: skip
    ds_config: str | None = key(
        None, verbatim=True, example="ds.json", meaning="DeepSpeed configuration that train.engine=deepspeed gets too"
    )
    resume: bool = key(True, meaning="resume from the newest good checkpoint of the run folder")
    profile: tuple[int, ...] = key(
        (), unit="steps", minimum=0, example="[10,11]",
        meaning="steps that the torch profiler traces into the run folder",
    )  # fmt: skip
    profile_ranks: tuple[int, ...] = key((0,), unit="ranks", minimum=0, example="[0,8]", meaning="ranks to profile")
    spans: tuple[int, ...] = key(  # the first after the warm-up
        (4, 5), unit="steps", minimum=0, example="[10,11]",
        meaning="steps whose forward, backward, collectives and optimizer `launcher report RUN trace=FILE` shows",
    )  # fmt: skip
    span_ranks: tuple[int, ...] = key(
        (), unit="ranks", minimum=0, example="[0,8]", meaning="ranks that record them; []: those of the first pipeline"
    )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TrainOptions:
        """Read the group `train`; raises InputError with every problem in it."""
        return read(cls, config, "train", siblings=(Training,))

    def lr_at(self, step: int) -> float:
        """Return the learning rate of step `step` (from 0): linear warm-up, then constant or a cosine to `min_lr`."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.lr_schedule == "constant":
            return self.lr
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        low = min(self.min_lr, self.lr)
        return low + (self.lr - low) * 0.5 * (1 + cos(pi * min(1.0, progress)))


@dataclass(frozen=True)
class TrackingOptions:
    """The keys of `tracking.*`: where metrics go in addition to the terminal and the run folder."""

    kind: str = key(
        "none", choices=(AUTO, "wandb", "tensorboard", "mlflow", "jsonl", "none"),
        meaning="who keeps the metrics in addition to metrics.jsonl; auto: wandb where the user is logged in",
    )  # fmt: skip
    mode: str = key(
        AUTO, choices=(AUTO, "online", "offline", "disabled"),
        meaning="wandb's mode; auto: online where the user is logged in, else offline (a run of less than 10 s becomes "
        "wandb's by `launcher sync`)",
    )  # fmt: skip
    project: str = key("nvlink-launcher", meaning="wandb's project")
    entity: str | None = key(None, meaning="wandb's entity; null: the user's own")
    name: str | None = key(None, meaning="name of the run; null: the run folder's")
    group: str | None = key(None, meaning="wandb's group of runs")
    job_type: str | None = key(None, meaning="wandb's type of the job; null: the recipe, or script")
    tags: tuple[str, ...] = key((), unit="tags", example="[sweep,a100]", meaning="wandb's tags of the run")
    folder: str | None = key(
        None, example="tracks", meaning="where tensorboard, mlflow and jsonl write; null: the run folder"
    )
    init_timeout_s: float = key(30.0, unit="s", minimum=1, meaning="how long wandb may take to connect; no step waits")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TrackingOptions:
        """Read the group `tracking`; raises InputError with every problem in it."""
        return read(cls, config, "tracking")


MOST_SIZES = 100
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def message_sizes(value: Any) -> tuple[int, ...]:
    """`8:8M:2`, as nccl-tests' -b, -e and -f; or a list of sizes."""
    if isinstance(value, list | tuple):
        sizes = [_size(item) for item in value]
    else:
        first, last, factor = [*str(value).split(":"), "2", "2"][:3] if ":" in str(value) else (value, value, "2")
        sizes, size, step = [], _size(first), _size(factor)
        if step < 2 or str(value).count(":") > 2:
            raise ValueError("must be first:last:factor with a factor of at least 2, as 8:8M:2")
        while size <= _size(last) and len(sizes) <= MOST_SIZES:
            sizes.append(size)
            size *= step
    if not 0 < len(sizes) <= MOST_SIZES or sizes != sorted(set(sizes)):
        raise ValueError(f"must give 1 to {MOST_SIZES} sizes that rise, as 8:8M:2 or [1024,1048576]")
    return tuple(sizes)


def _size(text: Any) -> int:
    match = re.fullmatch(r"(\d{1,15})([KMG]?)B?", str(text).strip().upper())
    if not match or not 0 < (size := int(match[1]) * UNITS[match[2]]) <= 2**40:
        raise ValueError("must be made of sizes in bytes, 1 to 1024G, as 8:8M:2")
    return size


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """The keys of `recipe.*` that all recipes share."""

    name: str = key("gpt", meaning="file of the recipe, under recipes/")
    stack: str | None = key(None, meaning="training stack that the recipe is built on; null: it trains no model")
    preload: tuple[str, ...] = key(
        (),
        unit="modules",
        meaning="imported once, before the ranks are forked; otherwise each costs every rank CPU seconds",
    )
    preload_by_engine: Mapping[str, tuple[str, ...]] = key(
        {}, names=ENGINES, unit="modules", meaning="additional modules, by train.engine"
    )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read the group `recipe`; raises InputError with every problem in it."""
        return read(cls, config, "recipe")


@dataclass(frozen=True, kw_only=True)
class CollectivesOptions(RecipeOptions):
    """What the recipe `collectives` measures."""

    operations: tuple[str, ...] = key(OPERATIONS, choices=OPERATIONS, meaning="collectives to measure")
    dtype: str = key("fp32", choices=DTYPES, meaning="number format of the messages")
    sizes: tuple[int, ...] | None = key(
        AUTO, auto=True, unit="bytes", convert=message_sizes, example="8:8M:2",
        meaning="messages, as first:last:factor with K, M and G for powers of 1024, or as a list; auto: 8:1G:8 with "
        "NCCL, 8:4M:8 with gloo",
    )  # fmt: skip
    warmup: int = key(2, unit="calls", minimum=0, meaning="untimed calls before each size")
    iterations: int = key(20, unit="calls", minimum=1, meaning="timed calls per size, at least")
    seconds: float = key(0.05, unit="s", minimum=0, maximum=60, meaning="more calls, until they take so long")
    world: bool = key(True, meaning="also measure the group of all ranks")
    fabric: bool = key(
        True, meaning="also measure each rail with the others silent, and pairs of leaves, where the plan has several"
    )
    alone: bool = key(True, meaning="measure the first group of each axis with the others silent, too")
    threshold: float = key(
        1.25, unit="1", above=1, meaning="a group that takes so many times as long as the others of its axis is slow"
    )


@dataclass(frozen=True, kw_only=True)
class GemmOptions(RecipeOptions):
    """What the recipe `gemm` measures."""

    dtypes: tuple[str, ...] | None = key(
        AUTO, auto=True, choices=DTYPES, meaning="number formats of the products; auto: the plan's train.dtype"
    )
    squares: tuple[int, ...] = key(
        (512, 1024), unit="rows", minimum=1, example="[1024,4096]", meaning="sizes of square products"
    )
    seconds: float = key(
        0.25, unit="s", minimum=0.01, maximum=600, meaning="time for each product, on all ranks at once"
    )
    sequences: tuple[int, ...] = key(
        (), unit="tokens", minimum=16, example="[2048,8192]", meaning="lengths at which attention is measured too"
    )


@dataclass(frozen=True, kw_only=True)
class MemoryOptions(RecipeOptions):
    """What the recipe `memory` measures."""

    num_bytes: int | None = key(
        AUTO, name="bytes", auto=True, unit="bytes", minimum=1024, maximum=2**40,
        meaning="of each buffer; auto: 1 GiB on a GPU, 64 MiB on a CPU, above the caches of either",
    )  # fmt: skip
    seconds: float = key(
        0.25, unit="s", minimum=0.01, maximum=600, meaning="time for each of them, on all ranks at once"
    )


@dataclass(frozen=True, kw_only=True)
class StorageOptions(RecipeOptions):
    """What the recipe `storage` measures."""

    num_bytes: int = key(
        2**26, name="bytes", unit="bytes", minimum=1024, maximum=2**40, meaning="of each writer's file"
    )
    rounds: int = key(3, unit="files", minimum=1, meaning="files of each writer, by number of writers")


@dataclass(frozen=True, kw_only=True)
class BandwidthOptions(RecipeOptions):
    """What the recipe `bandwidth` measures."""

    num_bytes: int | None = key(
        AUTO, name="bytes", auto=True, unit="bytes", minimum=4, maximum=2**40,
        meaning="message size; auto: 256 MiB with NCCL, 4 MiB with gloo; less over a slow link",
    )  # fmt: skip
    rounds: int = key(7, unit="nodes", minimum=1, meaning="how many other nodes each node is measured with, at most")
    iterations: int = key(5, unit="calls", minimum=1, meaning="timed calls per pair")
    threshold: float = key(
        0.8, unit="1", minimum=0, below=1, source="ours: NCCL varies by some 5 % between good nodes",
        meaning="a node below this fraction of the median is slow",
    )  # fmt: skip


def _plain(value: Any) -> Mapping[str, Any]:
    """Settings as JSON can store them."""
    try:
        stored = json.loads(json.dumps(value))
    except (TypeError, ValueError):
        stored = None
    if not isinstance(stored, dict):
        raise ValueError("must be a group of names with plain values, as {rounds: 3}")
    return stored


@dataclass(frozen=True, kw_only=True)
class OwnRecipeOptions(RecipeOptions):
    """A recipe of the user's, or of another package."""

    file: str | None = key(None, example="recipes/mine.py", meaning="file of the recipe; null: the one of its name")
    settings: Mapping[str, Any] = key(
        {}, convert=_plain, meaning="what the recipe wants to know, under names of its own"
    )

    @classmethod
    def from_keys(cls, given: dict[str, Any]) -> OwnRecipeOptions:
        file = Path(given["file"]) if given.get("file") else recipe_file(given["name"])
        if file is None or not file.is_file():
            raise InputError(f"recipe.file={file} is not a file: give the path of a recipe, or write recipes/NAME.py")
        return cls(**{**given, "file": str(file.absolute())})


FIRST_STEPS = 2  # of each plan that is tried, not counted: allocations, the first messages between stages


@dataclass(frozen=True, kw_only=True)
class TuneOptions(RecipeOptions):
    """How the recipe `tune` tries plans."""

    trials: str | None = key(None, meaning="folder of the plans to try; `launcher tune` fills it")
    steps: int = key(8, unit="steps", minimum=1, meaning="timed steps of each plan")
    patience: float = key(
        1.5, unit="1", minimum=1, meaning="a plan slower than the best one by this factor is stopped after one step"
    )


RECIPES: Mapping[str, type[RecipeOptions]] = MappingProxyType(
    {
        "tune": TuneOptions,
        "gpt": RecipeOptions,
        "collectives": CollectivesOptions,
        "gemm": GemmOptions,
        "memory": MemoryOptions,
        "storage": StorageOptions,
        "bandwidth": BandwidthOptions,
        "coldstart": RecipeOptions,
    }
)


def recipe_class(config: Mapping[str, Any]) -> type[RecipeOptions]:
    """Return the options class of the recipe that the group `recipe` names; raises ValueError if it does not exist."""
    name = config.get("name", "gpt")
    if name in RECIPES:
        return RECIPES[name]
    if config.get("file") or recipe_file(str(name)):
        return OwnRecipeOptions
    close = nearest(str(name), list(RECIPES))
    hint = f"did you mean {close[0]}?" if close else f"write recipes/{name}.py, or choose one of {', '.join(RECIPES)}"
    raise ValueError(f"recipe.name={name} is not a recipe: {hint}")
