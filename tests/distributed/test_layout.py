"""Merging partial aggregates over ranks: the algebra, presence, kinds of accumulators, and the bytes on the wire."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stabwatch.distributed.layout import MergeLayout, difference
from stabwatch.distributed.tree import children
from stabwatch.runlog import Accumulator, RecordLayout

ACTIVATION, GRADIENT = Accumulator("activation", "a", "moments"), Accumulator("gradient", "a", "moments")
CLIP, ATTENTION = Accumulator("gradient", "", "clip"), Accumulator("attention", "a", "attention_exact")
TABLE = RecordLayout.build([ACTIVATION, GRADIENT, CLIP, ATTENTION])
KINDS = {GRADIENT: "replicated", CLIP: "replicated"}
ROWS = np.array(
    [
        [10, 4.0, 0, 2.0, 8, 16.0, 0, 3.0, 1, 9.0, 0, 5, 0, 7.0, 1],
        [30, 6.0, 1, 5.0, 8, 16.0, 2, 3.0, 1, 9.0, 0, 5, 0, 9.0, 0],
    ]
)
EMPTY = TABLE.operators.identity


def merge_ranks(layout, rows, world=None):
    """What rank 0 makes of the rows of ranks 0, 1, ..."""
    merged = layout.partial(0, rows[0])
    for rank, row in enumerate(rows[1:], 1):
        merged = layout.merge(merged, layout.partial(rank, row))
    return layout.row(merged, len(rows) == (world or len(rows)))


def layout_of(sharded):
    kinds = {**KINDS, GRADIENT: "part"} if sharded else KINDS
    return MergeLayout(TABLE, kinds, frozenset([GRADIENT]) if sharded else frozenset())


def test_activations_add_up_and_replicated_gradients_do_not():
    merged = merge_ranks(layout_of(False), ROWS)
    assert list(merged) == [40, 10.0, 1, 5.0, 8, 16.0, 2, 3.0, 1, 9.0, 0, 10, 0, 9.0, 0]


def test_shards_of_gradients_add_up():
    assert list(merge_ranks(layout_of(True), ROWS)[4:8]) == [16, 32.0, 2, 3.0]


def test_the_norm_that_clipping_found_is_global_even_when_parameters_are_sharded():
    assert list(merge_ranks(layout_of(True), ROWS)[8:11]) == [1, 9.0, 0]


@pytest.mark.parametrize("nothing", [EMPTY, np.full(15, np.nan), np.zeros(15), None])
def test_a_rank_that_measured_nothing_changes_nothing(nothing):
    layout = layout_of(False)
    np.testing.assert_array_equal(merge_ranks(layout, [ROWS[0], nothing]), merge_ranks(layout, ROWS[:1]))


def test_a_sum_over_some_of_the_parts_is_absent():
    layout = layout_of(True)
    whole, partial = merge_ranks(layout, ROWS), merge_ranks(layout, [ROWS[0], EMPTY])
    assert np.isnan(partial[4:8]).all() and not np.isnan(partial[[0, 8, 11]]).any()
    assert np.isnan(merge_ranks(layout, ROWS, world=3)[4:8]).all(), "a rank that is not there holds a part too"
    holds_nothing = MergeLayout(TABLE, {**KINDS, GRADIENT: "part"}, frozenset())
    row = layout.row(layout.merge(layout.partial(0, ROWS[0]), holds_nothing.partial(1, EMPTY)), True)
    assert list(row[4:8]) == [8, 16.0, 0, 3.0] != list(whole[4:8])


def test_a_rank_that_measured_nothing_does_not_win_against_a_negative_sum():
    direction = Accumulator("update", "a", "direction")
    record = RecordLayout.build([direction, GRADIENT])
    layout = MergeLayout(record, {direction: "replicated", GRADIENT: "replicated"}, frozenset())
    row = np.array([8, -3.0, 4.0, 9.0, 8, 16.0, 0, 3.0])
    merged = merge_ranks(layout, [row, record.operators.identity])
    np.testing.assert_array_equal(merged, row)
    broken = row.copy()
    broken[1] = np.nan
    assert np.isnan(merge_ranks(layout, [row, broken])[1]), "what one rank measured as NaN stays"


def test_what_no_rank_measured_is_not_a_number():
    assert np.isnan(merge_ranks(layout_of(False), [EMPTY, EMPTY])).all()


def _rows(draw):
    value = st.sampled_from([0.0, 1.0, 2.0, 5.0, -3.0, np.nan, np.inf])
    row = [draw(value) for _ in range(15)]
    for start in TABLE.starts:
        row[start] = draw(st.sampled_from([0.0, 1.0, 4.0]))
    row[14] = draw(st.sampled_from([0.0, 1.0, 2.0]))
    return np.array(row)


@st.composite
def aggregates(draw, count):
    layout = layout_of(draw(st.booleans()))
    return layout, [layout.partial(rank, _rows(draw)) for rank in range(count)]


def _same(a, b):
    np.testing.assert_array_equal(a.values, b.values)
    np.testing.assert_array_equal(a.lacking, b.lacking)
    assert a.ranks == b.ranks


@given(aggregates(3))
def test_merging_is_associative_and_commutative(given_):
    layout, (a, b, c) = given_
    with np.errstate(invalid="ignore"):
        _same(layout.merge(layout.merge(a, b), c), layout.merge(a, layout.merge(b, c)))
        _same(layout.merge(a, b), layout.merge(b, a))


@given(aggregates(2))
def test_what_goes_over_the_wire_is_what_comes_out(given_):
    layout, (a, b) = given_
    merged = layout.merge(a, b)
    _same(layout.unpack(merged.ranks, layout.pack(merged)), merged)


@given(aggregates(2))
def test_without_kinds_it_is_the_merge_of_records(given_):
    _, (a, b) = given_
    layout = MergeLayout(TABLE, {}, frozenset())
    rows = [layout.row(layout_of(False).partial(i, layout_of(False).row(x, True)), True) for i, x in enumerate((a, b))]
    np.testing.assert_array_equal(merge_ranks(layout, rows), TABLE.operators.merge(np.stack(rows)))


def test_a_step_without_measurements_is_a_few_bytes():
    layout = layout_of(False)
    assert len(layout.pack(layout.partial(0, None))) == 2


def test_a_block_of_another_layout_is_refused():
    with pytest.raises(ValueError):
        layout_of(False).unpack(((0, 1),), b"\xff\x00" + bytes(12))


def test_a_row_of_another_layout_is_refused():
    with pytest.raises(ValueError, match="16 fields"):
        layout_of(False).partial(0, np.ones(16))


def test_what_two_layouts_do_not_share_is_said():
    other = MergeLayout(RecordLayout.build([ACTIVATION, CLIP]), KINDS, frozenset())
    mine = layout_of(False)
    assert mine.digest != other.digest
    assert difference(mine.description, other.description) == (
        "it lacks 2 accumulators (gradient of `a`, attention of `a`)"
    )
    assert "it has besides 2" in difference(other.description, mine.description)
    assert layout_of(True).digest != mine.digest


@pytest.mark.parametrize("world", [1, 26, 10_000])
def test_the_tree_gives_the_merge_of_all_ranks(world):
    """10,000 ranks without processes: each node merges what its children send over the wire."""
    layout = layout_of(False)
    row = ROWS[0]

    def node(rank):
        mine = row.copy()
        mine[13], mine[14] = rank % 977, rank
        merged = layout.partial(rank, mine)
        for first, _ in children(rank, world):
            below = node(first)
            merged = layout.merge(merged, layout.unpack(below.ranks, layout.pack(below)))
        return merged

    whole = node(0)
    assert whole.ranks == ((0, world),)
    highest = min(976, world - 1)
    expected = [10 * world, 4.0 * world, 0, 2, 8, 16, 0, 3, 1, 9, 0, 5 * world, 0, highest, highest]
    assert layout.row(whole, True).tolist() == expected
