"""The degrees of a layout: resolved (`Layout`), and as requested, with some left to the search (`LayoutRequest`)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from launcher.schema import AUTO, key

AXES = ("tp", "cp", "dp", "pp")  # ep divides dp: expert groups are parts of data-parallel groups
DEFAULT_AXIS_ORDER = "tp-cp-dp-pp"
RECOMPUTE_MODES = ("none", "selective", "op", "full")
# Keys of a request that pin no part of a layout.
ACCEPTED = ("tp_across_domains", "risk", "max_memory_gib", "memory_margin")
SCHEDULES = ("gpipe", "1f1b", "interleaved", "zb_h1")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """All degrees of a layout, resolved.

    `axis_order` names the axes from the fastest varying rank coordinate to the slowest: with `tp-cp-dp-pp`
    neighbours in rank are tensor-parallel peers. `layer_split` gives the layers of each pipeline stage
    (virtual stages in pipeline order, pp × virtual_stages of them); it always sums to the model's layers.
    `recompute`: none, selective (the attention core, Korthikanti et al. 2022), op (all but every second product and
    the attention core, torchtitan's "selective op") or full (whole layers); of `recompute_fraction` of the layers.
    `shard_group`: of the dp × cp ranks, how many neighbours ZeRO shards over, with replicas across; 0: over all.
    `offload_optimizer`: optimizer states, and the update, are on the host.
    """

    tp: int
    pp: int
    dp: int
    cp: int = 1
    ep: int = 1
    virtual_stages: int = 1
    micro_batch: int = 1
    zero_stage: int = 0
    shard_group: int = 0
    offload_optimizer: bool = False
    recompute: str = "none"
    recompute_fraction: float = 1.0
    sequence_parallel: bool = False
    axis_order: str = DEFAULT_AXIS_ORDER
    schedule: str = "1f1b"
    layer_split: tuple[int, ...] = ()
    tp_across_domains: bool = False

    @property
    def world_size(self) -> int:
        return self.tp * self.pp * self.dp * self.cp

    @property
    def shards(self) -> int:
        """Number of ranks over which ZeRO shards."""
        return self.shard_group or self.dp * self.cp

    @property
    def replicas(self) -> int:
        """Number of shard groups with the same content."""
        return self.dp * self.cp // self.shards

    @property
    def shard_span(self) -> tuple[int, int]:
        """Neighbours along dp and cp in a shard group; cp is filled first."""
        if self.shards % self.cp == 0:
            return self.shards // self.cp, self.cp
        return 1, self.shards if self.cp % self.shards == 0 else self.cp

    @property
    def sharding(self) -> int:
        """The ZeRO stage if there are ranks to shard over, else 0."""
        return self.zero_stage if self.shards > 1 else 0

    def num_micro_batches(self, global_batch: int) -> int:
        """Return the number of micro-batches that a pipeline runs per step."""
        return global_batch // (self.dp * self.micro_batch)

    def degree(self, axis: str) -> int:
        found: int = getattr(self, axis)
        return found

    def brief(self) -> str:
        """The layout in short form: `tp8 pp8 dp24 mb1 v3 zero1 selective sp`."""
        parts = [f"tp{self.tp}", f"pp{self.pp}", f"dp{self.dp}"]
        parts += [f"cp{self.cp}"] if self.cp > 1 else []
        parts += [f"ep{self.ep}"] if self.ep > 1 else []
        parts += [f"mb{self.micro_batch}"]
        parts += [f"v{self.virtual_stages}"] if self.virtual_stages > 1 else []
        parts += [f"zero{self.zero_stage}"] if self.zero_stage else []
        parts += [f"shard{self.shard_group}"] if self.shard_group else []
        parts += ["offload"] if self.offload_optimizer else []
        part = f" {self.recompute_fraction:.0%}" if self.recompute_fraction < 1 else ""
        parts += [self.recompute + part] if self.recompute != "none" else []
        parts += ["sp"] if self.sequence_parallel else []
        return " ".join(parts)


def degree_variables(layout: Layout) -> dict[str, str]:
    """Return the degrees as environment variables, for scripts that do not read the plan."""
    return {f"LAUNCHER_{axis.upper()}": str(layout.degree(axis)) for axis in AXES}


def checked_axis_order(value: Any) -> str:
    """Return a valid axis order unchanged; raises ValueError with the rule."""
    if not isinstance(value, str) or sorted(value.split("-")) != sorted(AXES):
        raise ValueError(
            f"must name each of {', '.join(AXES)} once, joined by '-', fastest varying first: for example "
            f"{DEFAULT_AXIS_ORDER}"
        )
    return value


def checked_shard_group(value: Any) -> int | str:
    """Return a valid shard group unchanged; raises ValueError with the rule."""
    if value in ("all", "node") or (type(value) is int and value > 0):
        return value  # type: ignore[no-any-return]
    raise ValueError("must be a number of ranks, node or all")


def _degree(meaning: str) -> Any:
    return key(AUTO, auto=True, minimum=1, unit="ranks", meaning=meaning)


@dataclass(frozen=True, kw_only=True)
class LayoutRequest:
    """The keys of `layout.*` as the user pinned them; None: the search decides."""

    tp: int | None = _degree("tensor parallel: ranks that share every layer")
    pp: int | None = _degree("pipeline parallel: ranks that divide the layers")
    dp: int | None = _degree("data parallel: ranks that divide the batch")
    cp: int | None = _degree("context parallel: ranks that divide a sequence")
    ep: int | None = _degree("expert parallel: ranks of dp that divide the experts")
    virtual_stages: int | None = key(AUTO, auto=True, minimum=1, unit="stages", meaning="pipeline stages of each rank")
    micro_batch: int | None = key(AUTO, auto=True, minimum=1, unit="sequences", meaning="sequences of a micro-batch")
    zero_stage: int | None = key(
        AUTO, auto=True, unit="stage", minimum=0, maximum=3,
        meaning="what data-parallel ranks shard: 1: optimizer states, 2: also gradients, 3: also parameters",
    )  # fmt: skip
    shard_group: int | str | None = key(
        AUTO, auto=True, unit="ranks", convert=checked_shard_group, example="8",
        meaning="data-parallel neighbours that ZeRO shards over, replicas across: a number, node (as many as one node "
        "holds) or all",
    )  # fmt: skip
    offload_optimizer: bool | None = key(
        AUTO, auto=True,
        meaning="optimizer states and update are on the host; auto: where the software can have them there, the host's "
        "memory is known and holds them, and without it no layout fits or all are clearly slower",
    )  # fmt: skip
    recompute: str | None = key(
        AUTO, auto=True, choices=RECOMPUTE_MODES,
        meaning="activations to recompute: none, selective (the attention core), op (all but the attention core "
        "and every second product) or full (whole layers)",
    )  # fmt: skip
    recompute_fraction: float | None = key(
        AUTO, auto=True, unit="1", above=0, maximum=1, meaning="fraction of the layers that are recomputed"
    )
    sequence_parallel: bool | None = key(
        AUTO, auto=True, meaning="tensor-parallel ranks shard the activations between the matrix products"
    )
    axis_order: str | None = key(
        AUTO, auto=True, convert=checked_axis_order, example=DEFAULT_AXIS_ORDER,
        meaning="axes, from the fastest varying with the rank to the slowest",
    )  # fmt: skip
    schedule: str | None = key(AUTO, auto=True, choices=SCHEDULES, meaning="order of a pipeline's micro-batches")
    layer_split: tuple[int, ...] | None = key(
        AUTO, auto=True, unit="layers", example="[12,14,12]", meaning="layers of each stage, in pipeline order"
    )
    tp_across_domains: bool = key(False, meaning="tensor parallelism may leave the NVSwitch domain")
    risk: float = key(
        0.05, unit="1", minimum=0.02, maximum=1, source="ours",
        meaning="chance of running out of memory that is accepted where a safer layout exists; 1: as estimated",
    )  # fmt: skip
    max_memory_gib: float | None = key(
        None,
        unit="GiB",
        above=0,
        example="64",
        meaning="memory of a GPU that a layout may take; null: all that is usable",
    )
    memory_margin: float = key(
        0.0, unit="1", minimum=0, below=1, meaning="share of a GPU's usable memory that a layout leaves free"
    )

    def pinned(self) -> dict[str, object]:
        """Return the keys that the user pinned, with their values."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ACCEPTED}
        return {name: value for name, value in values.items() if value is not None}
