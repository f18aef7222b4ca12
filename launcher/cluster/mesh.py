"""NVLinks that join GPUs pair by pair without a switch: what rings over some of them, and their sends, can use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import combinations, pairwise, permutations

from launcher.errors import InputError

Counts = tuple[tuple[int, ...], ...]  # NVLinks between two GPUs
MOST_RINGED = 8  # GPUs; of more, rings are found in the order of their numbers alone


def checked_counts(given: Sequence[Sequence[int]], *, num_gpus: int) -> Counts:
    """NVLinks between every two of `num_gpus` GPUs; raises InputError where the rows are no such table."""
    counts = tuple(tuple(row) for row in given)
    if wrong := next(_faults(counts, num_gpus), None):
        raise InputError(f"cluster.node.nvlinks has {len(counts)} rows, and {wrong}")
    return tuple(row[:num_gpus] for row in counts[:num_gpus])


def _faults(counts: Counts, num_gpus: int) -> Iterator[str]:
    size = range(len(counts))
    if any(len(row) != len(counts) for row in counts):
        yield "each must have as many numbers: one for each GPU"
        return
    if len(counts) < num_gpus:
        yield f"a node has {num_gpus} GPUs: give each a row"
    yield from (f"GPU{gpu} has links to itself: put 0 there" for gpu in size if counts[gpu][gpu])
    for a, b in combinations(size, 2):
        if counts[a][b] != counts[b][a]:
            yield f"GPU{a} has {counts[a][b]} to GPU{b}, which has {counts[b][a]} to it: these are the same links"


def components(counts: Counts) -> tuple[tuple[int, ...], ...]:
    """GPUs that NVLinks join, over others too."""
    found: list[tuple[int, ...]] = []
    left = set(range(len(counts)))
    while left:
        reached, fresh = set[int](), {min(left)}
        while fresh:
            reached |= fresh
            fresh = {b for a in fresh for b in left if counts[a][b]} - reached
        found.append(tuple(sorted(reached)))
        left -= reached
    return tuple(found)


def links_of_each(counts: Counts) -> int:
    """NVLinks of a GPU."""
    return max((sum(row) for row in counts), default=0)


@lru_cache(maxsize=4096)
def ring_links(counts: Counts, gpus: tuple[int, ...]) -> int:
    """NVLinks that each of `gpus` sends on at once, in rings over all of them that share no link: between two, all that
    join them; else each cycle is a ring either way round, as NCCL builds them. 0: no ring passes all.
    """
    if len(gpus) < 2:
        return 0
    if len(gpus) == 2:
        return counts[gpus[0]][gpus[1]]
    left = {pair: counts[pair[0]][pair[1]] for pair in combinations(sorted(gpus), 2)}
    most = min(sum(counts[gpu][other] for other in gpus) // 2 for gpu in gpus)
    cycles = [cycle for cycle in _cycles(sorted(gpus)) if all(left[edge] for edge in cycle)]
    return 2 * _most_apart(cycles, left, most, 0)


def fewest_links(counts: Counts, gpus: Sequence[int]) -> int:
    """NVLinks between the two of `gpus` that fewest join."""
    return min((counts[a][b] for a, b in combinations(gpus, 2)), default=0)


def _cycles(gpus: Sequence[int]) -> Iterator[tuple[tuple[int, int], ...]]:
    """Cycles through all GPUs, each once, as their edges."""
    first, *rest = gpus
    orders = permutations(rest) if len(gpus) <= MOST_RINGED else iter([tuple(rest)])
    for order in orders:
        if len(order) < 2 or order[0] < order[-1]:
            path = (first, *order, first)
            yield tuple((min(a, b), max(a, b)) for a, b in pairwise(path))


def _most_apart(
    cycles: Sequence[tuple[tuple[int, int], ...]], left: dict[tuple[int, int], int], most: int, start: int
) -> int:
    """How many cycles fit at once into the links that are left, at most `most`."""
    best = 0
    for i in range(start, len(cycles)):
        if best >= most:
            break
        if all(left[edge] for edge in cycles[i]):
            for edge in cycles[i]:
                left[edge] -= 1
            best = max(best, 1 + _most_apart(cycles, left, most - 1, i))
            for edge in cycles[i]:
                left[edge] += 1
    return best
