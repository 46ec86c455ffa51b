"""Rows of several ranks into one record, by the laws."""

from __future__ import annotations

import numpy as np

from stabwatch.distributed.ranks import merge_ranks
from stabwatch.runlog import Accumulator, RecordLayout

TABLE = RecordLayout.build(
    [
        Accumulator("activation", "a", "moments"),
        Accumulator("gradient", "a", "moments"),
        Accumulator("gradient", "", "clip"),
        Accumulator("attention", "a", "attention_exact"),
    ]
)
ROWS = np.array(
    [
        [10, 4.0, 0, 2.0, 8, 16.0, 0, 3.0, 1, 9.0, 0, 5, 0, 7.0, 1],
        [30, 6.0, 1, 5.0, 8, 16.0, 2, 3.0, 1, 9.0, 0, 5, 0, 9.0, 0],
    ]
)


def test_activations_add_up_and_replicated_gradients_do_not():
    merged = merge_ranks(TABLE, ROWS, sharded=False)
    assert list(merged) == [40, 10.0, 1, 5.0, 8, 16.0, 2, 3.0, 1, 9.0, 0, 10, 0, 9.0, 0]


def test_shards_of_gradients_add_up():
    merged = merge_ranks(TABLE, ROWS, sharded=True)
    assert list(merged[4:8]) == [16, 32.0, 2, 3.0]


def test_the_norm_that_clipping_found_is_global_even_when_parameters_are_sharded():
    assert list(merge_ranks(TABLE, ROWS, sharded=True)[8:11]) == [1, 9.0, 0]


def test_a_rank_that_measured_nothing_changes_nothing():
    empty = np.where(np.arange(15) < 15, TABLE.operators.identity, 0)
    for sharded in (False, True):
        alone = merge_ranks(TABLE, ROWS[:1], sharded)
        np.testing.assert_array_equal(merge_ranks(TABLE, np.stack([ROWS[0], empty]), sharded), alone)


def test_a_rank_that_measured_nothing_does_not_win_against_a_negative_sum():
    table = RecordLayout.build([Accumulator("update", "a", "direction"), Accumulator("gradient", "a", "moments")])
    row = np.array([8, -3.0, 4.0, 9.0, 8, 16.0, 0, 3.0])
    merged = merge_ranks(table, np.stack([row, np.where(np.arange(8) < 8, table.operators.identity, 0)]), sharded=False)
    np.testing.assert_array_equal(merged, row)
    broken = row.copy()
    broken[1] = np.nan
    assert np.isnan(merge_ranks(table, np.stack([row, broken]), sharded=False)[1]), (
        "what one rank measured as NaN stays"
    )


def test_what_no_rank_measured_is_not_a_number():
    empty = np.stack([TABLE.operators.identity, TABLE.operators.identity])
    assert np.isnan(merge_ranks(TABLE, empty, sharded=False)).all()
