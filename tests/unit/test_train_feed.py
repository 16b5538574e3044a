"""The plan deals every row of an epoch to exactly one worker, and goes on from any step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas_ray.data.dataset import RowGroup
from maas_ray.errors import DataError
from maas_ray.train.feed import Plan


def make_groups(sizes: list[int]) -> tuple[RowGroup, ...]:
    starts = np.cumsum([0, *sizes])
    return tuple(RowGroup("a.parquet", n, int(starts[n]), size) for n, size in enumerate(sizes))


def rows_of(plan: Plan, rank: int, start_step: int = 0) -> list[tuple[int, int]]:
    """(epoch, index) of every row a worker trains on, in order."""
    return [
        (piece.epoch, piece.group.start + int(place))
        for piece in plan.slices(rank, start_step)
        for place in plan.rows_of(piece)
    ]


plans = st.builds(
    lambda sizes, share, workers, epochs, seed, limit: (sizes, share * workers, workers, epochs, seed, limit),
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 9),
    st.none() | st.integers(1, 60),
).filter(lambda p: sum(p[0]) >= p[1])


@given(plans)
def test_every_row_of_an_epoch_is_dealt_once(case):
    sizes, batch, workers, epochs, seed, limit = case
    plan = Plan(make_groups(sizes), batch, workers, epochs, seed, limit)
    dealt = [rows_of(plan, rank) for rank in range(workers)]
    assert {len(rows) for rows in dealt} == {plan.total_steps * batch // workers}
    every = [row for rows in dealt for row in rows]
    assert len(set(every)) == len(every)
    for epoch in range(plan.total_steps // plan.steps_per_epoch):
        seen = [index for e, index in every if e == epoch]
        assert len(seen) == plan.rows - plan.left_over
        assert set(seen) <= set(range(plan.rows))


@given(plans, st.data())
def test_a_run_goes_on_at_any_step_with_the_rows_that_are_left(case, data):
    sizes, batch, workers, epochs, seed, limit = case
    plan = Plan(make_groups(sizes), batch, workers, epochs, seed, limit)
    step = data.draw(st.integers(0, plan.total_steps))
    for rank in range(workers):
        assert rows_of(plan, rank, step) == rows_of(plan, rank)[step * batch // workers :]


def test_epochs_differ_in_order_and_seeds_do_too():
    plan = Plan(make_groups([50, 50, 50]), 10, 1, 2, seed=1)
    rows = rows_of(plan, 0)
    first, second = [i for e, i in rows if e == 0], [i for e, i in rows if e == 1]
    assert sorted(first) == sorted(second) == list(range(150))
    assert first != second
    assert rows_of(Plan(make_groups([50, 50, 50]), 10, 1, 2, seed=2), 0) != rows
    assert rows_of(Plan(make_groups([50, 50, 50]), 10, 1, 2, seed=1), 0) == rows


def test_less_data_than_one_batch_is_an_error_that_says_what_to_do():
    with pytest.raises(DataError, match=r"7 rows, fewer than one batch of 8; lower batch_size"):
        Plan(make_groups([7]), 8, 1, 1, 0)
