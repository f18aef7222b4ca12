"""What-if and right-sizing: compare the best plans on several clusters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from launcher.cluster import Cluster
from launcher.cost.model import CostModel
from launcher.errors import InputError, NoLayoutFits
from launcher.layout import LayoutRequest
from launcher.layout.job import Job
from launcher.planner.document import estimate_data, layout_data
from launcher.planner.result import Candidate
from launcher.planner.search import search
from launcher.planner.space import Refuse

SECONDS_PER_HOUR, SECONDS_PER_DAY = 3600.0, 86400.0
SMALLER = 0.9  # a GPU with less than this fraction of the memory counts as smaller
SPARE_MEMORY = 0.5  # if less than this fraction of a GPU's memory is used, mention smaller GPUs


@dataclass(frozen=True)
class Case:
    """One thing to compare. `refuse`: what its software cannot run (`launcher.planner.search`)."""

    label: str
    job: Job
    request: LayoutRequest
    refuse: Refuse | None = None


class Bill(NamedTuple):
    """The cost of training for a number of tokens: days, GPU-hours, and USD if the price is known."""

    tokens: float
    days: float
    gpu_hours: float
    cost: float | None


@dataclass(frozen=True)
class Row:
    """The best plan on one cluster; if there is none, `best` is None and `note` says why.

    `jobs` run side by side (more than one on MIG slices); speed, GPU-hours and cost are those of one job.
    `scaling`: speed per GPU relative to the smallest size of the same cluster; None if there is only one size.
    Units: tokens/s, days, GPU-hours, USD.
    """

    label: str
    cluster: Cluster
    num_gpus: int
    best: Candidate | None
    note: str = ""
    jobs: int = 1
    tokens_per_s: float = 0.0
    scaling: float | None = None
    days: float | None = None
    gpu_hours: float | None = None
    cost: float | None = None

    def __repr__(self) -> str:
        return f"<Row {self.label or self.cluster.name}: {self.brief}, {self.tokens_per_s:,.0f} tokens/s>"

    @property
    def brief(self) -> str:
        return self.best.layout.brief() if self.best else "none"


@dataclass(frozen=True)
class Comparison:
    """Rows in the order asked for, and what follows from them. `tokens`: training tokens, or None; `what`: the keys by
    which the rows differ; `tokens_per_parameter`: where each model has its own number of tokens.
    """

    rows: tuple[Row, ...]
    tokens: float | None
    verdicts: tuple[str, ...]
    what: str = "cluster"
    tokens_per_parameter: float | None = None


def compare(cases: Iterable[Case], *, tokens: float | None = None, what: str = "cluster") -> Comparison:
    """Plan each case, with GPU-hours and cost for `tokens` training tokens."""
    rows = _with_scaling([planned(case, tokens) for case in cases])
    return Comparison(tuple(rows), tokens, tuple(verdicts(rows)), what)


def resized(cluster: Cluster, num_gpus: int) -> Cluster:
    """Return the cluster with `num_gpus` GPUs: whole nodes, or part of one; raises InputError otherwise."""
    node = cluster.node
    if num_gpus < 1:
        raise InputError(f"sizes={num_gpus} must be at least 1 GPU")
    if num_gpus <= node.num_gpus:
        kept = set(node.gpu_order[:num_gpus])
        domains = tuple(part for d in node.domains if (part := tuple(gpu for gpu in d if gpu in kept)))
        renumbered = {gpu: i for i, gpu in enumerate(sorted(kept))}
        domains = tuple(tuple(renumbered[gpu] for gpu in domain) for domain in domains)
        nics, numa = (
            tuple(given[gpu] for gpu in sorted(kept)) if given else None
            for given in (node.nic_of_gpu, node.numa_of_gpu)
        )
        links = tuple(tuple(node.nvlinks[a][b] for b in sorted(kept)) for a in sorted(kept)) if node.nvlinks else None
        some = replace(node, num_gpus=num_gpus, domains=domains, nvlinks=links, nic_of_gpu=nics, numa_of_gpu=numa)
        return replace(cluster, num_nodes=1, node=some)
    if num_gpus % node.num_gpus:
        raise InputError(
            f"sizes={num_gpus} is not a whole number of {cluster.name} nodes ({node.num_gpus} GPUs each): "
            f"choose a multiple of {node.num_gpus}, or at most {node.num_gpus}"
        )
    if num_gpus > node.num_gpus and not (node.num_nics and node.nic_gbps):
        raise InputError(
            f"sizes={num_gpus} needs a network between the nodes, and {cluster.name} has none: choose at most "
            f"{node.num_gpus}, or set cluster.node.num_nics and cluster.node.nic_gbps"
        )
    return replace(cluster, num_nodes=num_gpus // node.num_gpus)


def planned(case: Case, tokens: float | None) -> Row:
    """Plan one case; where there is no plan, its note says why."""
    job, cluster = case.job, case.job.cluster
    try:
        best = search(job, case.request, top=1, model=CostModel(job), refuse=case.refuse).best
    except (InputError, NoLayoutFits) as error:
        return Row(case.label, cluster, cluster.num_gpus, None, note=str(error).splitlines()[0])
    used = best.layout.world_size
    speed = best.estimate.tokens_per_s_per_gpu * used
    row = Row(case.label, cluster, used, best, jobs=cluster.num_gpus // used, tokens_per_s=speed)
    if row.jobs > 1:
        row = replace(row, note=f"{row.jobs} such jobs run side by side, one on each slice")
    if not tokens:
        return row
    due = bill(estimate_data(best.estimate), used, tokens)
    return replace(row, days=due.days, gpu_hours=due.gpu_hours, cost=due.cost)


def bill(estimate: Mapping[str, Any], used: int, tokens: float) -> Bill:
    """Return the cost of training for `tokens` tokens on `used` GPUs; `estimate` by its public names."""
    price = estimate["cost_per_million_tokens"]
    seconds = tokens / (estimate["tokens_per_s_per_gpu"] * used)
    cost = None if price is None else price * tokens / 1e6
    return Bill(tokens, seconds / SECONDS_PER_DAY, seconds * used / SECONDS_PER_HOUR, cost)


def _with_scaling(rows: Sequence[Row]) -> list[Row]:
    """Add the speed per GPU relative to the smallest size of the same cluster with a plan, if there are several."""
    sizes: dict[str, list[Row]] = {}
    for row in sorted((row for row in rows if row.best), key=lambda row: row.num_gpus):
        sizes.setdefault(row.cluster.name, []).append(row)
    several = {name: found[0] for name, found in sizes.items() if found[-1].num_gpus > found[0].num_gpus}
    return [
        replace(row, scaling=_per_gpu(row) / _per_gpu(several[row.cluster.name]))
        if row.best and row.cluster.name in several
        else row
        for row in rows
    ]


def _per_gpu(row: Row) -> float:
    return row.tokens_per_s / row.num_gpus


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Say which cluster is fastest and cheapest, whether an A100 is more than needed, and which GPUs are enough."""
    planned = [row for row in rows if row.best]
    if len(planned) < 2:
        return []
    fastest = max(planned, key=lambda row: row.tokens_per_s)
    verdicts = [f"fastest: {fastest.label}, {fastest.tokens_per_s:,.0f} tokens/s"]
    priced = sorted((row for row in planned if _price(row) is not None), key=lambda row: _price(row) or 0.0)
    if priced:
        verdicts.append(f"cheapest: {priced[0].label}, ${_price(priced[0]):.4f} per million tokens")
        verdicts += _worth_an_a100(priced)
    return verdicts + _smaller(planned)


def ordered(comparison: Comparison, by: str) -> Comparison:
    """The comparison with its rows by `time` (most tokens a second first), `memory` or `cost`; without a plan last."""

    def place(row: Row) -> tuple[bool, float]:
        if row.best is None:
            return True, 0.0
        price = _price(row)
        costs = float("inf") if price is None else price
        values = {"time": -row.tokens_per_s, "memory": row.best.estimate.memory_bytes_per_gpu, "cost": costs}
        return False, values[by]

    return replace(comparison, rows=tuple(sorted(comparison.rows, key=place)))


def _price(row: Row) -> float | None:
    return row.best.estimate.cost_per_million_tokens if row.best else None


def _worth_an_a100(priced: Sequence[Row]) -> list[str]:
    """Compare the cheapest row with the cheapest of whole A100s; `priced` is sorted by price."""
    whole = [row for row in priced if row.cluster.node.gpu.name.startswith("a100") and not row.cluster.node.is_mig]
    others = [row for row in priced if row not in whole]
    if not whole or not others:
        return []
    a100, other = whole[0], others[0]
    ratio = (_price(other) or 0.0) / (_price(a100) or 1.0)
    speed = _per_gpu(other) / _per_gpu(a100)
    pace = f"{speed:.2f}× its speed per GPU"
    if ratio >= 1:
        more = f"{other.label} costs {ratio - 1:.0%} more per token than {a100.label}, at {pace}"
        return [f"an A100 earns its price: {more}"]
    less = f"costs {1 - ratio:.0%} less per token than {a100.label}, at {pace}"
    if speed > 1:
        return [f"an A100 is not the best buy: {other.label} {less}"]
    return [f"a whole A100 is more than this job needs: {other.label} is enough, and {less}"]


def _smaller(planned: Sequence[Row]) -> list[str]:
    """For plans that leave most of the memory unused, name the smaller GPUs that also fit the job."""
    verdicts = []
    for row in planned:
        if row.best is None or row.cluster.node.gpu.kind != "cuda":
            continue
        share = row.best.estimate.memory_bytes_per_gpu / row.best.estimate.usable_memory_bytes
        size = SMALLER * row.cluster.node.gpu.memory_bytes
        smaller = dict.fromkeys(
            other.cluster.node.gpu.name for other in planned if other.cluster.node.gpu.memory_bytes < size
        )
        if share < SPARE_MEMORY and smaller:
            verdicts.append(
                f"{row.label} uses {share:.0%} of its GPUs' memory; smaller ones fit the job: {', '.join(smaller)}"
            )
    return verdicts


def comparison_data(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as a document: rows with the public names of an estimate; None: unknown."""
    return {
        "tokens": comparison.tokens,
        "tokens_per_parameter": comparison.tokens_per_parameter,
        "what": comparison.what,
        "rows": [_row_data(row) for row in comparison.rows],
        "verdicts": list(comparison.verdicts),
    }


def _row_data(row: Row) -> dict[str, Any]:
    data: dict[str, Any] = {
        "label": row.label,
        "cluster": row.cluster.name,
        "gpu": row.cluster.node.gpu.name,
        "num_gpus": row.num_gpus,
        "jobs": row.jobs,
        "tokens_per_s": row.tokens_per_s if row.best else None,
        "scaling": row.scaling,
        "days": row.days,
        "gpu_hours": row.gpu_hours,
        "cost": row.cost,
        "note": row.note,
        "plan": None,
    }
    if row.best:
        data["plan"] = {"layout": layout_data(row.best.layout), **estimate_data(row.best.estimate)}
    return data
