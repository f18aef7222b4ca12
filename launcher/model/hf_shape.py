"""What is read of a Hugging Face config.json, and what a family of models says of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

Config = Mapping[str, Any]
NOTHING: Config = MappingProxyType({})
Flag = bool | str  # a fact of the family, or the key that says it


@dataclass(frozen=True, kw_only=True)
class HfShape:
    """The numbers of a config.json. `latent`: ranks and widths of multi-latent attention, empty without it."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    positions: int
    tied: bool
    eps: float
    theta: float
    norms: int
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    head_bias: bool
    qk_norm: bool
    experts: int = 0
    experts_per_token: int = 0
    expert_ffn: int = 0
    shared_ffn: int = 0
    first_dense_layers: int = 0  # of dense_layers, those before all others
    dense_layers: int = 0
    latent: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Family:
    """One `model_type`.

    `names`: ours of what is read → keys; `aliases`: keys → other names of theirs. `defaults`: of transformers' class;
    `assumed`: where it has none. `norms`: of a layer, each of `norm_vectors` vectors. `biases`: of queries, keys and
    values, of the attention's output, of the MLP. `qk_norm`: of each head's width, or of all heads' (`wide_qk_norm`).
    `special`: what no other field says. `only`: values of keys that alone are read. `missing`: what all its models have
    and our shape cannot say.
    """

    names: Mapping[str, str]
    defaults: Config
    fixed: Config
    aliases: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    assumed: Config = field(default_factory=lambda: NOTHING)
    theta: float = 10000.0
    norms: int = 2
    norm_vectors: int | None = None
    biases: tuple[Flag, Flag, Flag] = (False, False, False)
    head_bias: Flag = False
    qk_norm: Flag = False
    wide_qk_norm: bool = False
    embedding_norm: bool = False
    more_positions: int = 0
    latent: bool = False
    shared_gate: bool = False
    router_bias: bool = False
    sinks: bool = False
    special: Callable[[Config, HfShape], HfShape] | None = None
    only: Config = field(default_factory=lambda: NOTHING)
    missing: tuple[str, ...] = ()

    @property
    def vectors(self) -> int:
        """Vectors of parameters of a norm: a scale, and a shift with LayerNorm, unless the family has others."""
        usual = 2 if self.fixed["norm"] == "layernorm" else 1
        return usual if self.norm_vectors is None else self.norm_vectors

    def value(self, config: Config, key: str) -> Any:
        """A key's value: what the file says under any name of it, else the default."""
        names = (key, *(name for name, of in self.aliases.items() if of == key))
        said = [config[name] for name in names if name in config]  # null is a value: it follows from others
        return said[0] if said else self.defaults.get(key, self.assumed.get(key))

    def says(self, config: Config, flag: Flag) -> bool:
        """Whether a flag is on."""
        return flag if isinstance(flag, bool) else bool(self.value(config, flag))
