"""Data that several ranks are given counts once, found by comparing what they measured."""

from __future__ import annotations

import numpy as np
import pytest

from stabwatch.distributed.copies import MOST_OPEN, REPORTS, Copies
from stabwatch.distributed.layout import MergeLayout
from stabwatch.runlog import Accumulator, RecordLayout

WHOLE, SPLIT = Accumulator("activation", "norm", "moments"), Accumulator("activation", "up", "moments")
GRADIENT = Accumulator("gradient", "up", "moments")
LAYOUT = MergeLayout(RecordLayout.build([WHOLE, SPLIT, GRADIENT]), {GRADIENT: "part"}, frozenset([GRADIENT]))


def row(split, whole=6.0):
    """Of one rank: the whole stream, its share of a split layer, its shard of a gradient."""
    return np.array([10, whole, 2, 1.5, 8, split, 0, 0.5, 4, 3.0, 0, 1.0])


class Job:
    """Ranks that are given the same data in pairs."""

    def __init__(self, world=2, group=(0, 1)):
        self.world, self.root = world, Copies(LAYOUT, ())
        self.ranks = [Copies(LAYOUT, group if rank in group else ()) for rank in range(world)]

    def step(self, step, rows):
        """What rank 0 writes, when each rank has reported."""
        merged, reported = None, 0
        for rank, (copies, values) in enumerate(zip(self.ranks, rows, strict=True)):
            partial = LAYOUT.partial(rank, values)
            due = copies.report(partial)
            if due is not None:
                reported += 1
                self.root.take(step, copies.group, LAYOUT.unpack(due.ranks, LAYOUT.pack(due)))
            merged = partial if merged is None else LAYOUT.merge(merged, partial)
        self.reported = reported
        return LAYOUT.row(merged, True, self.root.times(merged.ranks, self.world))


def test_what_is_equal_counts_once_and_shares_add_up():
    assert list(Job().step(0, [row(3.0), row(5.0)])) == [10, 6, 2, 1.5, 16, 8, 0, 0.5, 8, 6, 0, 1]


def test_several_groups_of_which_one_reports():
    """Two pairs with batches of their own: the first pair shows what is shared."""
    rows = [row(3.0), row(5.0), row(4.0, whole=7.0), row(6.0, whole=7.0)]
    job = Job(4)
    assert list(job.step(0, rows)[:2]) == [20, 13]
    assert job.reported == 2


def test_a_layer_that_begins_with_zeros_is_not_taken_to_be_shared_later():
    job = Job()
    assert job.step(0, [row(0.0), row(0.0)])[4] == 8, "of zeros nothing else is known"
    assert list(job.step(1, [row(3.0), row(5.0)])[4:6]) == [16, 8]
    assert list(job.step(2, [row(4.0), row(4.0)])[4:6]) == [16, 8]


def test_each_accumulator_is_reported_a_few_times():
    job, reported = Job(), []
    for step in range(REPORTS + 2):
        job.step(step, [row(3.0), row(5.0)])
        reported.append(job.reported)
    assert reported == [2] * REPORTS + [0, 0]
    assert list(job.step(9, [row(3.0), row(5.0)])[:2]) == [10, 6]


def test_nothing_is_divided_where_a_rank_is_missing_or_has_not_reported():
    job = Job()
    job.step(0, [row(3.0), row(5.0)])
    assert job.root.times(((0, 1),), 2) is None
    assert Copies(LAYOUT, ()).times(((0, 2),), 2) is None


def test_reports_that_stay_incomplete_are_let_go():
    root = Copies(LAYOUT, ())
    for step in range(MOST_OPEN + 10):
        root.take(step, (0, 1), LAYOUT.partial(0, row(3.0)))
    assert len(root._open) == MOST_OPEN


@pytest.mark.parametrize("apart", [0.0, 1e-7, 1e-4])
def test_equal_is_up_to_the_rounding_of_float32(apart):
    a, b = LAYOUT.partial(0, row(3.0)), LAYOUT.partial(1, row(3.0 * (1 + apart)))
    assert list(LAYOUT.equal(a, b)) == [True, apart < 1e-5, True]
