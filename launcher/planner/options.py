"""What recipes read from `train.*` beyond speed and memory, from `tracking.*` and from `recipe.*`. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import cos, pi
from types import MappingProxyType
from typing import Any

from launcher.config.fields import AUTO, Fields, raise_problems

LR_SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class TrainOptions:
    """Training options of a recipe, typed. The keys and their defaults stand in configs/train/default.yaml."""

    steps: int = 80
    lr: float = 2e-3
    min_lr: float = 2e-4
    lr_schedule: str = "cosine"
    warmup_steps: int = 10
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    momentum: float = 0.0
    grad_clip: float = 1.0  # 0: off
    seed: int = 1234
    init_from: str | None = None  # Hugging Face folder with safetensors; None: drawn from the seed
    data: str | None = None  # token file; None: the Python standard library's source, as bytes
    hybrid_shard: bool = False
    log_every: int = 1
    checkpoint_every: int = 0  # steps; 0: no checkpoints
    checkpoint_async: bool = True
    keep_last: int = 2
    keep_every: int = 0
    resume: bool = True
    profile: tuple[int, ...] = ()
    profile_ranks: tuple[int, ...] = (0,)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TrainOptions:
        """Read Plan.config["train"]; raises InputError with every problem found."""
        fields = Fields(config, "train")
        options = cls(
            steps=fields.integer("steps", cls.steps, minimum=1),
            lr=fields.number("lr", cls.lr, minimum=0.0),
            min_lr=fields.number("min_lr", cls.min_lr, minimum=0.0),
            lr_schedule=fields.choice("lr_schedule", LR_SCHEDULES, cls.lr_schedule),
            warmup_steps=fields.integer("warmup_steps", cls.warmup_steps, minimum=0),
            weight_decay=fields.number("weight_decay", cls.weight_decay, minimum=0.0),
            beta1=fields.number("beta1", cls.beta1, minimum=0.0),
            beta2=fields.number("beta2", cls.beta2, minimum=0.0),
            momentum=fields.number("momentum", cls.momentum, minimum=0.0),
            grad_clip=fields.number("grad_clip", cls.grad_clip, minimum=0.0),
            seed=fields.integer("seed", cls.seed, minimum=0),
            init_from=fields.optional_text("init_from"),
            data=fields.optional_text("data"),
            hybrid_shard=fields.flag("hybrid_shard", cls.hybrid_shard),
            log_every=fields.integer("log_every", cls.log_every, minimum=1),
            checkpoint_every=fields.integer("checkpoint_every", cls.checkpoint_every, minimum=0),
            checkpoint_async=fields.flag("checkpoint_async", cls.checkpoint_async),
            keep_last=fields.integer("keep_last", cls.keep_last, minimum=1),
            keep_every=fields.integer("keep_every", cls.keep_every, minimum=0),
            resume=fields.flag("resume", cls.resume),
            profile=_numbers(fields, "profile", cls.profile),
            profile_ranks=_numbers(fields, "profile_ranks", cls.profile_ranks),
        )
        for key in ("beta1", "beta2"):
            if getattr(options, key) >= 1:
                fields.problem(f"train.{key}={getattr(options, key)} must be below 1: 0.9 and 0.95 are usual")
        if fields.text("engine", "torch") == "deepspeed":
            fields.problems += options._without_deepspeed()
        raise_problems(fields.problems)
        return options

    def _without_deepspeed(self) -> list[str]:
        """What is asked for that only the torch engine does."""
        problems = []
        if self.hybrid_shard:
            problems.append(
                "train.hybrid_shard=true: the DeepSpeed engine shards over all of dp: set train.engine=torch"
            )
        return problems

    def lr_at(self, step: int) -> float:
        """Learning rate of step `step` (from 0): linear warm-up, then constant or a cosine down to `min_lr`."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.lr_schedule == "constant":
            return self.lr
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        low = min(self.min_lr, self.lr)
        return low + (self.lr - low) * 0.5 * (1 + cos(pi * min(1.0, progress)))


def _numbers(fields: Fields, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
    value = fields.raw(key, list(default))
    if isinstance(value, list | tuple) and all(isinstance(v, int) and v >= 0 for v in value):
        return tuple(value)
    fields.problem(f"train.{key}={value!r} must be a list of whole numbers, as [10,11]")
    return default


@dataclass(frozen=True)
class TrackingOptions:
    """Where metrics go besides the terminal and the run folder. Keys and defaults stand in configs/tracking."""

    kind: str = "none"  # wandb | none
    mode: str = "auto"  # auto: online where the user is logged in, else offline | online | offline | disabled
    project: str = "nvlink-launcher"
    entity: str | None = None
    name: str | None = None
    group: str | None = None
    init_timeout_s: float = 30.0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TrackingOptions:
        """Read Plan.config["tracking"]; raises InputError with every problem found."""
        fields = Fields(config, "tracking")
        options = cls(
            kind=fields.choice("kind", ("wandb", "none"), cls.kind),
            mode=fields.choice("mode", ("auto", "online", "offline", "disabled"), cls.mode),
            project=fields.text("project", cls.project),
            entity=fields.optional_text("entity"),
            name=fields.optional_text("name"),
            group=fields.optional_text("group"),
            init_timeout_s=fields.number("init_timeout_s", cls.init_timeout_s, minimum=1.0),
        )
        fields.close()
        raise_problems(fields.problems)
        return options


OPERATIONS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv")
GEMM_DTYPES = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class CollectivesOptions:
    """What the recipe `collectives` measures. Keys and defaults stand in configs/recipe/collectives.yaml."""

    operations: tuple[str, ...] = OPERATIONS
    dtype: str = "fp32"
    min_bytes: int = 1024
    max_bytes: int | None = None  # None: by the backend
    factor: int = 8
    warmup: int = 2
    iterations: int = 5
    world: bool = True  # the group of all ranks too, besides those of the plan's axes

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> CollectivesOptions:
        """Read Plan.config["recipe"]; raises InputError with every problem found."""
        fields = Fields(config, "recipe")
        options = cls(
            operations=_choices(fields, "operations", OPERATIONS),
            dtype=fields.choice("dtype", GEMM_DTYPES, cls.dtype),
            min_bytes=fields.integer("min_bytes", cls.min_bytes, minimum=1),
            max_bytes=fields.auto_integer("max_bytes"),
            factor=fields.integer("factor", cls.factor, minimum=2),
            warmup=fields.integer("warmup", cls.warmup, minimum=0),
            iterations=fields.integer("iterations", cls.iterations, minimum=1),
            world=fields.flag("world", cls.world),
        )
        if options.max_bytes is not None and options.max_bytes < options.min_bytes:
            fields.problem(
                f"recipe.max_bytes={options.max_bytes} must be at least recipe.min_bytes={options.min_bytes}"
            )
        if options.factor & (options.factor - 1):
            fields.problem(f"recipe.factor={options.factor} must be a power of two, as the sizes are: 2, 4 or 8")
        raise_problems(fields.problems)
        return options


@dataclass(frozen=True)
class GemmOptions:
    """What the recipe `gemm` measures. Keys and defaults stand in configs/recipe/gemm.yaml."""

    dtypes: tuple[str, ...] | None = None  # None: the plan's
    squares: tuple[int, ...] = ()
    warmup: int = 2
    iterations: int = 5
    copy_bytes: int = 2**26

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> GemmOptions:
        """Read Plan.config["recipe"]; raises InputError with every problem found."""
        fields = Fields(config, "recipe")
        options = cls(
            dtypes=None if fields.raw("dtypes", AUTO) == AUTO else _choices(fields, "dtypes", GEMM_DTYPES),
            squares=fields.integers("squares") or (),
            warmup=fields.integer("warmup", cls.warmup, minimum=0),
            iterations=fields.integer("iterations", cls.iterations, minimum=1),
            copy_bytes=fields.integer("copy_bytes", cls.copy_bytes, minimum=1024),
        )
        if any(size < 1 for size in options.squares):
            fields.problem(f"recipe.squares={list(options.squares)} must be positive sizes, as [1024,4096]")
        raise_problems(fields.problems)
        return options


@dataclass(frozen=True)
class BandwidthOptions:
    """What the recipe `bandwidth` measures. Keys and defaults stand in configs/recipe/bandwidth.yaml."""

    num_bytes: int | None = None  # None: by the backend
    rounds: int = 7
    iterations: int = 5
    threshold: float = 0.8

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> BandwidthOptions:
        """Read Plan.config["recipe"]; raises InputError with every problem found."""
        fields = Fields(config, "recipe")
        options = cls(
            num_bytes=fields.auto_integer("bytes", minimum=4),
            rounds=fields.integer("rounds", cls.rounds, minimum=1),
            iterations=fields.integer("iterations", cls.iterations, minimum=1),
            threshold=fields.number("threshold", cls.threshold, minimum=0.0),
        )
        if options.threshold >= 1:
            fields.problem(f"recipe.threshold={options.threshold:g} must be below 1: 0.8 calls a node slow at 80 %")
        raise_problems(fields.problems)
        return options


RECIPE_OPTIONS: Mapping[str, Callable[[Mapping[str, Any]], object]] = MappingProxyType(
    {
        "collectives": CollectivesOptions.from_config,
        "gemm": GemmOptions.from_config,
        "bandwidth": BandwidthOptions.from_config,
    }
)


def check_recipe(config: Mapping[str, Any]) -> None:
    """Raise InputError where the options of the recipe that Plan.config["recipe"] names are unsound."""
    read = RECIPE_OPTIONS.get(str(config.get("name")))
    if read is not None:
        read(config)


def _choices(fields: Fields, key: str, allowed: Sequence[str]) -> tuple[str, ...]:
    value = fields.raw(key, list(allowed))
    if isinstance(value, list | tuple) and value and all(item in allowed for item in value):
        return tuple(value)
    fields.problem(f"recipe.{key}={value!r} must be a list of some of {', '.join(allowed)}")
    return tuple(allowed)
