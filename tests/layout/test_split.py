"""Layers over pipeline stages."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapes import job, model

from launcher.layout import Layout
from launcher.layout.resolve import with_layer_split
from launcher.layout.split import (
    balanced_split,
    default_split,
    has_split,
    interleaves,
    split_by_cost,
    uniform_split,
)


@given(st.integers(1, 130), st.data())
def test_every_stage_has_a_layer_and_none_is_lost(layers: int, data: st.DataObject) -> None:
    stages = data.draw(st.integers(1, layers))
    split = balanced_split(model(layers=layers), num_stages=stages)
    assert len(split) == stages
    assert sum(split) == layers
    assert min(split) >= 1
    assert max(split) - min(split) <= 1


@given(st.integers(2, 130), st.data())
def test_where_layers_do_not_divide_the_ends_are_never_the_fullest_while_a_middle_stage_is_not(
    layers: int, data: st.DataObject
) -> None:
    stages = data.draw(st.integers(2, layers))
    split = balanced_split(model(layers=layers), num_stages=stages)
    if len(set(split)) > 1:
        assert split[-1] == min(split)
        assert split[0] <= max(split[1:-1], default=split[0])


@pytest.mark.parametrize(
    ("layers", "stages", "expected"),
    [
        (70, 12, (5, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 5)),  # BLOOM-176B (Le Scao et al. 2022): 70 layers on 12 stages
        (24, 4, (6, 6, 6, 6)),
        (7, 3, (2, 3, 2)),
        (5, 4, (1, 2, 1, 1)),
        (3, 2, (2, 1)),
    ],
)
def test_known_splits(layers: int, stages: int, expected: tuple[int, ...]) -> None:
    assert balanced_split(model(layers=layers), num_stages=stages) == expected


@given(st.integers(1, 130), st.data())
def test_a_uniform_split_has_a_layer_for_every_stage_and_loses_none(layers: int, data: st.DataObject) -> None:
    stages = data.draw(st.integers(2, max(2, layers)))
    if layers >= stages:
        split = uniform_split(layers, num_stages=stages, ends=(1, 2))
        assert (len(split), sum(split)) == (stages, layers) and min(split) >= 1


@pytest.mark.parametrize(
    ("layers", "stages", "expected"),
    [
        # numpy's partition of scaling's pipe_partition_uniform over 40 + 3 and 60 + 3 items, less the three
        (40, 2, (21, 19)),
        (40, 4, (10, 11, 11, 8)),
        (60, 4, (15, 16, 16, 13)),
    ],
)
def test_software_that_counts_the_ends_as_layers_gives_them_fewer(
    layers: int, stages: int, expected: tuple[int, ...]
) -> None:
    of = model(layers=layers)
    assert default_split(job(of=of, stack="scaling"), num_stages=stages) == expected
    assert default_split(job(of=of), num_stages=stages) == balanced_split(of, num_stages=stages)


def test_virtual_stages_at_the_ends_may_hold_the_embedding_and_the_head_alone() -> None:
    """126 layers, the embedding and the head on 16 × 8 virtual stages (Llama Team 2024, section 3.3.2)."""
    llama = job(of=model(layers=126), stack="torchtitan")
    layout = with_layer_split(llama, Layout(tp=1, pp=16, dp=1, virtual_stages=8, schedule="interleaved"))
    assert layout.layer_split == (0, *[1] * 126, 0)
    assert interleaves(126, num_stages=127) and not interleaves(126, num_stages=129)
    assert not has_split(llama, num_stages=128, virtual=False)
    assert not has_split(job(of=model(layers=126), stack="scaling"), num_stages=128, virtual=True)


def fullest(split: tuple[int, ...], first_extra: float, last_extra: float) -> float:
    costs = [float(count) for count in split]
    costs[0] += first_extra
    costs[-1] += last_extra
    return max(costs)


@given(st.integers(1, 9), st.floats(0, 4), st.floats(0, 4), st.data())
def test_no_split_has_a_cheaper_fullest_stage(layers: int, first: float, last: float, data: st.DataObject) -> None:
    stages = data.draw(st.integers(1, min(layers, 4)))
    split = split_by_cost(layers, num_stages=stages, first_extra=first, last_extra=last)
    every = [s for s in product(range(1, layers + 1), repeat=stages) if sum(s) == layers]
    assert split in every
    assert fullest(split, first, last) == pytest.approx(min(fullest(s, first, last) for s in every))


def test_a_heavy_head_takes_layers_off_the_last_stage() -> None:
    assert split_by_cost(32, num_stages=4, first_extra=0.0, last_extra=2.4) == (8, 9, 9, 6)
