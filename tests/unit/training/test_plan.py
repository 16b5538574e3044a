"""The plan deals every row of every epoch to exactly one step and worker, whatever fails and however many there are."""

import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from maas_ray.errors import DataError
from maas_ray.training.plan import Ledger, Plan, default_lanes
from tests.support.errors import raises

Rows = list[tuple[int, int]]


def make_plan(sizes: list[int], **changes: int | None) -> Plan:
    fields = {"batch_size": 4, "lanes": 1, "epochs": 1, "seed": 0} | changes
    return Plan(np.array(sizes), **fields)  # type: ignore[arg-type]


def rows_by_step(plan: Plan, rank: int, workers: int, start: int, read_rows: int = 8) -> dict[int, Rows]:
    """(epoch, index) of every row that a worker trains on in each step, in order."""
    found: dict[int, Rows] = {}
    for first, last in plan.reads(rank, workers, start, read_rows):
        for lane in plan.lanes_of(rank, workers, first, last):
            rows = [(piece.epoch, int(index)) for piece in lane.slices for index in plan.indices_of(piece)]
            assert len(rows) == (last - first) * lane.width
            for step in range(first, last):
                of_step = rows[(step - first) * lane.width : (step - first + 1) * lane.width]
                found.setdefault(step, []).extend(of_step[lane.low : lane.high])
    return found


def ledger_of(rows: Rows) -> Ledger:
    return Ledger.of(np.array([e for e, _ in rows], int), np.array([i for _, i in rows], int))


plans = st.builds(
    lambda sizes, lanes, width, epochs, seed, limit: make_plan(
        sizes, batch_size=lanes * width, lanes=lanes, epochs=epochs, seed=seed, max_steps=limit
    ),
    st.lists(st.integers(1, 30), min_size=1, max_size=10),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 9),
    st.none() | st.integers(1, 40),
)
attempts = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 60), st.integers(1, 40)), min_size=1, max_size=6)


@settings(max_examples=1500, suppress_health_check=[HealthCheck.too_slow])
@given(plans, attempts)
@example(make_plan([7], batch_size=16, lanes=4, epochs=2), [(6, 0, 1), (1, 60, 1)])  # fewer rows than a batch
def test_every_row_of_every_epoch_once_through_failures_and_other_numbers_of_workers(plan: Plan, attempts):
    step, seen = 0, []
    for workers, steps, read_rows in [*attempts, (2, plan.total_steps, 7)]:
        dealt = [rows_by_step(plan, rank, workers, step, read_rows) for rank in range(workers)]
        stop = min(step + steps, plan.total_steps)  # this attempt's last checkpoint; later steps are void
        for number in range(step, stop):
            shares = [dealt[rank].get(number, []) for rank in range(workers)]
            assert sum(map(len, shares)) == plan.rows_in(number)
            for rank, share in enumerate(shares):
                low, high = plan.share(number, rank, workers)
                assert len(share) == high - low
                seen += share
        step = stop
        assert ledger_of(seen) == plan.ledger_at(step)
    assert len(set(seen)) == len(seen)
    if plan.total_steps * plan.batch_size >= plan.stream_rows:
        assert sorted(seen) == [(epoch, index) for epoch in range(plan.epochs) for index in range(plan.rows)]


@given(plans, st.integers(1, 5))
def test_a_step_trains_on_the_same_rows_whatever_the_number_of_workers(plan: Plan, workers: int):
    alone = rows_by_step(plan, 0, 1, 0)
    shared = [rows_by_step(plan, rank, workers, 0) for rank in range(workers)]
    for step, rows in alone.items():
        assert [row for share in shared for row in share.get(step, [])] == rows


@pytest.mark.parametrize(
    ("batch_size", "workers", "lanes"), [(12, 4, 4), (10, 4, 2), (7, 4, 1), (2, 8, 2), (6, 8, 6), (9, 1, 1), (1, 1, 1)]
)
def test_lanes_of_a_new_run_divide_the_batch(batch_size: int, workers: int, lanes: int) -> None:
    assert default_lanes(batch_size, workers) == lanes


def test_epochs_differ_in_order_and_seeds_do_too():
    def order(seed: int) -> Rows:
        plan = make_plan([50, 50, 50], batch_size=10, epochs=2, seed=seed)
        return [row for rows in rows_by_step(plan, 0, 1, 0).values() for row in rows]

    first, second = ([index for e, index in order(1) if e == epoch] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(150))
    assert first != second
    assert order(2) != order(1)
    assert order(1) == order(1)


def test_a_worker_reads_whole_row_groups_of_its_own_lane():
    plan = make_plan([100] * 40, batch_size=40, lanes=4)
    groups = [
        [
            piece.group
            for read in plan.reads(rank, 4, 0, 100)
            for lane in plan.lanes_of(rank, 4, *read)
            for piece in lane.slices
        ]
        for rank in range(4)
    ]
    assert [len(set(some)) for some in groups] == [10, 10, 10, 10]
    assert len(set().union(*groups)) == 40


def test_a_position_far_on_costs_no_more_than_the_first():
    plan = make_plan([1000] * 10_000, batch_size=1000, lanes=10, epochs=1000)
    reads = plan.reads(3, 10, plan.total_steps - 100, 1000)
    assert reads[0][0] == plan.total_steps - 100
    assert len(reads) == 10
    (lane,) = plan.lanes_of(3, 10, *reads[0])
    assert sum(piece.high - piece.low for piece in lane.slices) == 1000
    assert {piece.epoch for piece in lane.slices} == {999}


def test_a_ledger_tells_a_row_that_is_missing_doubled_or_of_another_epoch():
    rows = [(0, 1), (0, 2), (1, 1)]
    whole = ledger_of(rows)
    assert ledger_of(rows[::-1]) == whole == ledger_of(rows[:1]) + ledger_of(rows[1:])
    for other in (
        rows[:2],
        [*rows, (1, 1)],
        [(0, 1), (0, 2), (1, 2)],
        [(0, 1), (0, 1), (1, 1)],
        [(1, 1), (0, 2), (1, 1)],
    ):
        assert ledger_of(other) != whole


def test_a_worker_without_rows_in_the_last_step_has_no_read_for_it():
    plan = make_plan([9], batch_size=4, lanes=2)  # two whole steps and one row
    assert plan.total_steps == 3
    assert plan.share(2, 0, 2) == (0, 0)
    assert [plan.reads(rank, 2, 0, 1) for rank in (0, 1)] == [[(0, 2)], [(0, 2), (2, 3)]]
    assert [plan.reads(rank, 2, 2, 1) for rank in (0, 1)] == [[], [(2, 3)]]


def test_plans_travel_without_what_they_can_make_again():
    plan = make_plan([1000] * 1000, batch_size=100)
    plan.lanes_of(0, 1, 0, 10)
    assert len(pickle.dumps(plan)) < 20_000


def test_no_rows_and_lanes_that_do_not_divide_are_errors():
    with raises(DataError, "split_empty"):
        make_plan([])
    with pytest.raises(ValueError, match="3 lanes do not divide a batch of 4"):
        make_plan([7], lanes=3)
