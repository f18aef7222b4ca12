"""The degrees of a layout: resolved (`Layout`) and as asked for, with some left to the search (`LayoutRequest`)."""

from __future__ import annotations

from dataclasses import dataclass, fields

AXES = ("tp", "cp", "dp", "pp")  # ep divides dp: expert groups are cut out of data-parallel ones
DEFAULT_AXIS_ORDER = "tp-cp-dp-pp"
RECOMPUTE_MODES = ("none", "selective", "full")
SCHEDULES = ("gpipe", "1f1b", "interleaved", "zb_h1")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """All degrees of a layout, resolved.

    `axis_order` names the axes from the fastest varying rank coordinate to the slowest: with `tp-cp-dp-pp`
    neighbours in rank are tensor-parallel peers. `layer_split` gives the layers of each pipeline stage
    (virtual stages in pipeline order, pp × virtual_stages of them); it always sums to the model's layers.
    `recompute`: none, selective (the attention core, Korthikanti et al. 2022) or full (whole layers).
    """

    tp: int
    pp: int
    dp: int
    cp: int = 1
    ep: int = 1
    virtual_stages: int = 1
    micro_batch: int = 1
    zero_stage: int = 0
    recompute: str = "none"
    sequence_parallel: bool = False
    axis_order: str = DEFAULT_AXIS_ORDER
    schedule: str = "1f1b"
    layer_split: tuple[int, ...] = ()
    tp_across_domains: bool = False

    @property
    def world_size(self) -> int:
        return self.tp * self.pp * self.dp * self.cp

    @property
    def sharding(self) -> int:
        """The ZeRO stage, where there are ranks to shard over."""
        return self.zero_stage if self.dp * self.cp > 1 else 0

    def num_micro_batches(self, global_batch: int) -> int:
        """Micro-batches that one pipeline runs in a step."""
        return global_batch // (self.dp * self.micro_batch)

    def degree(self, axis: str) -> int:
        found: int = getattr(self, axis)
        return found

    def brief(self) -> str:
        """The layout in a few words: `tp8 pp8 dp24 mb1 v3 zero1 selective sp`."""
        parts = [f"tp{self.tp}", f"pp{self.pp}", f"dp{self.dp}"]
        parts += [f"cp{self.cp}"] if self.cp > 1 else []
        parts += [f"ep{self.ep}"] if self.ep > 1 else []
        parts += [f"mb{self.micro_batch}"]
        parts += [f"v{self.virtual_stages}"] if self.virtual_stages > 1 else []
        parts += [f"zero{self.zero_stage}"] if self.zero_stage else []
        parts += [self.recompute] if self.recompute != "none" else []
        parts += ["sp"] if self.sequence_parallel else []
        return " ".join(parts)


@dataclass(frozen=True, kw_only=True)
class LayoutRequest:
    """What the user pinned; None where the search decides."""

    tp: int | None = None
    pp: int | None = None
    dp: int | None = None
    cp: int | None = None
    ep: int | None = None
    virtual_stages: int | None = None
    micro_batch: int | None = None
    zero_stage: int | None = None
    recompute: str | None = None
    sequence_parallel: bool | None = None
    axis_order: str | None = None
    schedule: str | None = None
    layer_split: tuple[int, ...] | None = None
    tp_across_domains: bool = False

    def pinned(self) -> dict[str, object]:
        """The keys that the user fixed, with their values."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "tp_across_domains"}
        return {name: value for name, value in values.items() if value is not None}
