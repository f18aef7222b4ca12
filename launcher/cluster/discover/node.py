"""Describes a node from all observations: facts with their sources, and disagreements between sources."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from launcher.cluster.discover.gpus import Card
from launcher.cluster.discover.sources import Seen, SeenGpu
from launcher.cluster.machine import Machine, Nic, natural
from launcher.cluster.nvlink import NvlinkShape, nvlink_shape
from launcher.units import GIB

_T = TypeVar("_T")


@dataclass(frozen=True)
class Fact(Generic[_T]):
    """A value and the sources that say it."""

    value: _T
    source: str


@dataclass(frozen=True)
class Nics:
    """The adapters that carry traffic between nodes: those of one fabric and rate."""

    names: tuple[str, ...]
    gbps: float
    fabric: str
    same_names: bool = True  # on all nodes that were seen


@dataclass(frozen=True)
class NodeView:
    """A node. None: no source says it. `slices`: the profiles that each GPU is cut into.

    `problems`: what is odd about this very node, broken links and lost lanes; `notes`: how it was read.
    """

    name: str
    num_gpus: Fact[int] | None = None
    card: Fact[Card] | None = None
    slices: Fact[tuple[tuple[str, ...], ...]] | None = None
    shape: Fact[NvlinkShape] | None = None
    nics: Fact[Nics] | None = None
    machine: Fact[Machine] | None = None
    numa: Fact[tuple[int, ...]] | None = None
    nic_of_gpu: Fact[tuple[int, ...]] | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def node_views(seen: Iterable[Seen]) -> list[NodeView]:
    """Each node, once."""
    by_node: dict[str, list[Seen]] = defaultdict(list)
    for each in seen:
        by_node[each.node].append(each)
    return [_view(name, sources) for name, sources in by_node.items()]


def _view(name: str, sources: Sequence[Seen]) -> NodeView:
    counts = [Fact(each.num_gpus, each.source) for each in sources if each.num_gpus is not None]
    cards, mixed = _cards(sources)
    slices = next((fact for each in sources if (fact := _slices(each))), None)
    shape = _shape(sources, cards.value.name if cards else "")
    machine = next((Fact(each.machine, each.source) for each in sources if each.machine), None)
    nics, nic_notes = _nics(sources, machine)
    count = _agreed(counts)
    broken = [f"{each.source}: {defect}" for each in sources for defect in each.problems]
    return NodeView(
        name,
        count,
        cards,
        slices,
        shape,
        nics,
        machine,
        next((Fact(each.numa, each.source) for each in sources if each.numa), None),
        _nic_of_gpu(sources, nics),
        (*_disagreements("GPUs", counts), *mixed, *(shape.value.defects if shape else ()), *broken),
        (*(note for each in sources for note in each.notes), *nic_notes),
    )


def _agreed(facts: Sequence[Fact[int]]) -> Fact[int] | None:
    """The largest count: what one source misses another has seen."""
    if not facts:
        return None
    most = max(fact.value for fact in facts)
    return Fact(most, ", ".join(fact.source for fact in facts if fact.value == most))


def _disagreements(what: str, facts: Sequence[Fact[int]]) -> list[str]:
    if len({fact.value for fact in facts}) < 2:
        return []
    return ["sources disagree: " + ", ".join(f"{fact.source} shows {fact.value} {what}" for fact in facts)]


def _cards(sources: Sequence[Seen]) -> tuple[Fact[Card] | None, list[str]]:
    """The card of most GPUs of the first source that names any, and what of all sources speaks against it."""
    named = [(each, _named(each.gpus)) for each in sources if each.gpus and _named(each.gpus)]
    if not named:
        return None, []
    first, cards = named[0]
    kinds = Counter(card.entry or card.name for card in cards)  # one SKU may have several names (a number, a name)
    kind = max(kinds, key=lambda each: kinds[each])
    by_kind = {each.entry or each.name: each for each in cards}
    card = by_kind[kind]
    problems = [
        f"{times} of {len(cards)} GPUs are {by_kind[other].name}, not {card.name}"
        for other, times in kinds.items()
        if other != kind
    ]
    for each, found in named[1:]:
        other = max(found, key=found.count)
        if other.entry and card.entry and other.entry != card.entry:
            problems.append(f"sources disagree: {first.source} shows {card.name}, {each.source} {other.name}")
    known = next((found[0] for _, found in named if found[0].entry), card)
    return Fact(card if card.entry else known, first.source), problems


def _named(gpus: Sequence[SeenGpu]) -> list[Card]:
    return [gpu.card for gpu in gpus if gpu.card.name]


def _slices(seen: Seen) -> Fact[tuple[tuple[str, ...], ...]] | None:
    if seen.gpus and any(gpu.slices for gpu in seen.gpus):
        return Fact(tuple(gpu.slices for gpu in seen.gpus), seen.source)
    return None


def _shape(sources: Sequence[Seen], product: str) -> Fact[NvlinkShape] | None:
    found = [Fact(nvlink_shape(each.nvlinks, product=product), each.source) for each in sources if each.nvlinks]
    return max(found, key=lambda fact: sum(map(len, fact.value.domains or ())), default=None)


def _nics(sources: Sequence[Seen], machine: Fact[Machine] | None) -> tuple[Fact[Nics] | None, list[str]]:
    """The adapters for traffic between nodes: of those that are up, those behind one PCIe switch with a GPU where any
    is, and of these the kind with most bandwidth together; without any RDMA the Ethernet interfaces.
    """
    known = machine.value.nics if machine else ()
    other = next((each for each in sources if each.ports), None) if not known else None
    if machine is None and other is None:
        return _listed_nics(sources)
    ports, source = (other.ports, other.source) if other else (known, machine.source if machine else "")
    up = [nic for nic in ports if nic.active]
    down = [nic.name for nic in ports if not nic.active]
    notes = [f"{', '.join(down)} are down: not counted"] if down else []
    near = frozenset[str]().union(*(each.near for each in sources if each.near))
    nearby = [nic for nic in up if nic.device in near or nic.busid in near]
    if nearby and (far := [nic.name for nic in up if nic not in nearby]):
        notes.append(f"{', '.join(far)} share no PCIe switch with a GPU: taken as storage or service adapters")
    kept, left = _one_kind(nearby or up)
    notes += [f"{_shown(nics)}: left out, since {_shown(kept)} carry more" for nics in left]
    if not kept and machine:
        kept, left = _one_kind([nic for nic in machine.value.ethernet if nic.active and nic.gbps])
        names = ", ".join(nic.name for nic in kept)
        unknown = "no Ethernet interface says its speed: set cluster.node.num_nics and nic_gbps for several nodes"
        notes.append(f"no RDMA adapters found; {f'traffic between nodes takes {names}' if kept else unknown}")
    if not kept:
        return None, notes
    nics = Nics(tuple(nic.name for nic in kept), kept[0].gbps, kept[0].fabric)
    return Fact(nics, source or (machine.source if machine else "")), notes


def _one_kind(nics: Sequence[Nic]) -> tuple[list[Nic], list[list[Nic]]]:
    """The adapters of the fabric and rate that carry most together, and those of the others."""
    kinds: dict[tuple[str, float], list[Nic]] = defaultdict(list)
    for nic in nics:
        kinds[nic.fabric, nic.gbps].append(nic)
    if not kinds:
        return [], []
    best = max(kinds, key=lambda kind: (kind[1] * len(kinds[kind]), len(kinds[kind])))
    return kinds.pop(best), list(kinds.values())


def _shown(nics: Sequence[Nic]) -> str:
    rate = f" at {nics[0].gbps:g} Gb/s" if nics[0].gbps else ""
    return f"{', '.join(nic.name for nic in nics)} ({nics[0].fabric}{rate})"


def _listed_nics(sources: Sequence[Seen]) -> tuple[Fact[Nics] | None, list[str]]:
    """Where /sys was not seen: the adapters by name, of unknown fabric, with their rate where all have the same.

    Bonded ports are for storage and services, where there are others.
    """
    for each in sources:
        found = sorted(each.near or each.listed, key=natural)
        bonds = [name for name in found if "bond" in name]
        names = tuple(name for name in found if name not in bonds) or tuple(found)
        if names:
            notes = (
                [f"{', '.join(bonds)}: left out, as a bond for storage or services"] if len(names) < len(found) else []
            )
            if each.num_gpus and len(names) > 2 * each.num_gpus:
                notes.append(
                    f"{len(names)} NICs are near {each.num_gpus} GPUs: several may be functions of one adapter "
                    "(SR-IOV); `ibstat` says which are up"
                )
            rates = {each.listed.get(name, 0.0) for name in names}
            return Fact(Nics(names, rates.pop() if len(rates) == 1 else 0.0, ""), each.source), notes
    return None, []


def _nic_of_gpu(sources: Sequence[Seen], nics: Fact[Nics] | None) -> Fact[tuple[int, ...]] | None:
    """The NIC of each GPU, of those that count: GPUs with the same nearest NICs take them by turns. None where some GPU
    is near none.
    """
    names = {name: index for index, name in enumerate(nics.value.names)} if nics else {}
    for each in sources:
        near = [tuple(names[name] for name in found if name in names) for found in each.nearest]
        if names and near and all(near) and len(names) <= 2 * len(near):
            turns: Counter[tuple[int, ...]] = Counter()
            found = []
            for choice in near:
                found.append(choice[turns[choice] % len(choice)])
                turns[choice] += 1
            return Fact(tuple(found), each.source)
    return None


def usual_node(views: Sequence[NodeView]) -> tuple[NodeView, list[str]]:
    """Return what most nodes are, and the nodes that differ, each with its difference."""
    if len(views) == 1:
        return views[0], list(views[0].problems)
    notes = [f"{view.name}: {problem}" for view in views for problem in view.problems]
    usual = {}
    for field, shown in SHOWN.items():
        facts = {view.name: fact for view in views if (fact := getattr(view, field)) is not None}
        if not facts:
            continue
        words = {name: shown(fact.value) for name, fact in facts.items()}
        common, times = Counter(words.values()).most_common(1)[0]
        usual[field] = next(fact for name, fact in facts.items() if words[name] == common)
        if times * 2 > len(words):
            most = f"where {times} of {len(words)} nodes have {common}"
            notes += [f"{name} is odd: {said}, {most}" for name, said in words.items() if said != common]
        else:
            notes.append("the nodes differ: " + "; ".join(f"{name} has {said}" for name, said in words.items()))
        if missing := [view.name for view in views if view.name not in facts]:
            notes.append(f"nothing says it of {', '.join(missing)}: {LABELS[field]}")
    if len({view.nics.value.names for view in views if view.nics}) > 1:
        usual["nics"] = replace(usual["nics"], value=replace(usual["nics"].value, same_names=False))
        notes.append("the adapters have other names on other nodes: none are written, and libraries choose")
    shared = dict.fromkeys(note for view in views for note in view.notes)
    return NodeView("", **usual, notes=tuple(shared)), notes


def _shown_nics(nics: Nics) -> str:
    count = len(nics.names)
    return f"{count} NIC{'s' * (count > 1)}" + (f" at {nics.gbps:g} Gb/s" if nics.gbps else "")


def _shown_shape(shape: NvlinkShape) -> str:
    sizes = "a partial mesh" if shape.domains is None else "+".join(str(len(domain)) for domain in shape.domains)
    return f"NVLink {shape.kind} domains of {sizes}"


def _shown_slices(slices: Sequence[Sequence[str]]) -> str:
    return "MIG slices " + "; ".join(" ".join(cut) or "none" for cut in slices)


SHOWN: Mapping[str, Callable[[Any], str]] = MappingProxyType(
    {
        "num_gpus": lambda count: f"{count} GPUs",
        "card": lambda card: card.name,
        "slices": _shown_slices,
        "shape": _shown_shape,
        "nics": _shown_nics,
        "machine": lambda machine: f"{machine.cores} cores and {round(machine.memory_bytes / GIB / 16) * 16} GiB",
    }
)
LABELS: Mapping[str, str] = MappingProxyType(
    {
        "num_gpus": "how many GPUs there are", "card": "what its GPUs are", "slices": "how its GPUs are cut",
        "shape": "its NVLinks", "nics": "its network adapters", "machine": "its cores and memory",
    }
)  # fmt: skip
