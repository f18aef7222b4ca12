"""Laws of the rank grid."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.layout import Layout, RankGrid
from launcher.layout.degrees import AXES
from launcher.layout.grid import axis_order_problem

degrees = st.tuples(*(st.integers(1, 5) for _ in AXES))
orders = st.permutations(AXES)


@st.composite
def grids(draw: st.DrawFn) -> RankGrid:
    axes, sizes = tuple(draw(orders)), draw(degrees)
    dp = sizes[axes.index("dp")]
    return RankGrid(axes, sizes, draw(st.sampled_from([d for d in range(1, dp + 1) if dp % d == 0])))


@given(grids())
def test_rank_and_coordinate_are_inverse_to_each_other(grid: RankGrid) -> None:
    coordinates = [grid.coordinate(rank) for rank in range(grid.size)]
    assert [grid.rank(**coordinate) for coordinate in coordinates] == list(range(grid.size))
    assert len({tuple(c.items()) for c in coordinates}) == grid.size
    assert all(0 <= c[axis] < grid.degree(axis) for c in coordinates for axis in grid.axes)


@given(grids(), st.sampled_from([*AXES, "ep"]))
def test_groups_of_an_axis_partition_the_world(grid: RankGrid, axis: str) -> None:
    groups = list(grid.groups(axis))
    assert {len(group) for group in groups} == {grid.degree(axis)}
    assert sorted(rank for group in groups for rank in group) == list(range(grid.size))
    assert [group[0] for group in groups] == sorted(group[0] for group in groups)


@given(grids(), st.sampled_from(AXES))
def test_members_of_a_group_differ_along_its_axis_only(grid: RankGrid, axis: str) -> None:
    for group in grid.groups(axis):
        places = [grid.coordinate(rank) for rank in group]
        assert [place[axis] for place in places] == list(range(grid.degree(axis)))
        assert all({**place, axis: 0} == {**places[0], axis: 0} for place in places)
        assert all(grid.group(axis, rank) == group for rank in group)


@given(grids())
def test_expert_groups_are_cut_out_of_data_parallel_ones(grid: RankGrid) -> None:
    for group in grid.groups("ep"):
        assert set(group) <= set(grid.group("dp", group[0]))


@given(grids())
def test_the_first_axis_varies_fastest(grid: RankGrid) -> None:
    assert grid.strides[grid.axes[0]] == 1
    assert [grid.strides[axis] for axis in grid.axes] == sorted(grid.strides[axis] for axis in grid.axes)


def test_the_grid_of_a_layout_follows_its_axis_order() -> None:
    grid = RankGrid.of(Layout(tp=2, pp=3, dp=4, axis_order="tp-dp-pp-cp"))
    assert grid.group("tp", 0) == (0, 1)
    assert grid.group("dp", 1) == (1, 3, 5, 7)
    assert grid.group("pp", 0) == (0, 8, 16)


@pytest.mark.parametrize("order", ["tp", "tp-cp-dp", "tp-tp-dp-pp", "tp-cp-dp-xx", "tp,cp,dp,pp", ""])
def test_a_wrong_axis_order_is_reported_with_an_example(order: str) -> None:
    message = axis_order_problem(order)
    assert message is not None
    assert repr(order) in message and "tp-cp-dp-pp" in message


def test_every_permutation_is_a_right_axis_order() -> None:
    assert axis_order_problem("pp-dp-cp-tp") is None
