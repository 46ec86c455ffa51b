"""The merge laws as algebra: one law serves micro-batches, ranks, windows and down-sampling alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from stabwatch.signals.reductions import IDENTITY, REDUCTIONS, Field, MergeOperators, Op, Reduction

NAN, INF = np.nan, np.inf


def law_of(*reductions: Reduction) -> MergeOperators:
    """The law of a record that has one cell of each reduction."""
    ops = [f.op for r in reductions for f in r.fields]
    return MergeOperators(ops, [i for i, r in enumerate(reductions) for _ in r.fields])


# One cell of every reduction that there is, and one of every operator, so that a new one is covered when it appears.
EVERY = (*REDUCTIONS.values(), Reduction("low", (Field("count", "sum"), Field("low", "min"))))
LAW = law_of(*EVERY)
SLOTS = [f.op for r in EVERY for f in r.fields]
STARTS = np.cumsum([0, *(len(r.fields) for r in EVERY)])[:-1]

# Whole numbers: their sums are exact in any order, so that the laws hold bit for bit.
EXTREMES = [*range(-9, 10), -INF, INF]
PARTIAL: dict[Op, list[float]] = {
    "sum": list(range(1001)), "max": EXTREMES, "min": EXTREMES, "arg": list(range(6)),
}  # fmt: skip


def _cells(rng: np.random.Generator, reduction: Reduction) -> list[float]:
    if rng.integers(4) == 0:
        return [NAN] * len(reduction.fields)
    return [float(rng.integers(1, 10)), *(float(rng.choice(PARTIAL[f.op])) for f in reduction.fields[1:])]


def records(least: int = 1, most: int = 5) -> st.SearchStrategy[np.ndarray]:
    """Rows of numbers from a drawn seed: hundreds of numbers that are drawn one by one take a second."""

    def made(n: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return np.array([[x for r in EVERY for x in _cells(rng, r)] for _ in range(n)]).reshape(n, len(SLOTS))

    return st.builds(made, st.integers(least, most), st.integers(0, 2**32 - 1))


@given(records(most=6), st.data())
def test_the_merge_of_any_split_is_the_merge_of_the_whole(rows: np.ndarray, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=3)))
    parts = np.split(rows, cuts)  # some of them empty
    assert_array_equal(LAW.merge(np.array([LAW.merge(p) for p in parts])), LAW.merge(rows))


@given(records(), st.randoms(use_true_random=False))
def test_the_order_does_not_matter(rows: np.ndarray, random) -> None:
    order = random.sample(range(len(rows)), len(rows))
    assert_array_equal(LAW.merge(rows[order]), LAW.merge(rows))


@given(records(least=3, most=3))
def test_the_grouping_does_not_matter(rows: np.ndarray) -> None:
    a, b, c = rows
    left = LAW.merge(np.array([LAW.merge(np.array([a, b])), c]))
    right = LAW.merge(np.array([a, LAW.merge(np.array([b, c]))]))
    assert_array_equal(left, right)


@given(records())
def test_a_cell_that_measured_nothing_changes_nothing(rows: np.ndarray) -> None:
    whole = LAW.merge(rows)
    for empty in (np.full(len(SLOTS), NAN), np.zeros(len(SLOTS)), LAW.identity):
        assert_array_equal(LAW.merge(np.vstack([rows, empty])), whole)
        assert_array_equal(LAW.merge(np.vstack([empty, rows])), whole)


@given(records(least=1, most=1))
def test_one_record_merges_to_itself(rows: np.ndarray) -> None:
    assert_array_equal(LAW.merge(rows), rows[0])


def test_no_records_are_nothing_measured() -> None:
    assert np.isnan(LAW.merge(np.empty((0, len(SLOTS))))).all()


def test_an_unmeasured_cell_stays_nan_beside_a_measured_one() -> None:
    law = law_of(REDUCTIONS["mean"], REDUCTIONS["moments"])
    row = np.array([2, 6, 0, NAN, NAN, NAN, NAN])
    assert_array_equal(law.merge(np.array([row, row])), [4, 12, 0, NAN, NAN, NAN, NAN])


def test_filled_and_blanked_are_each_others_inverse_on_unmeasured_cells() -> None:
    law = law_of(REDUCTIONS["attention_exact"])
    unmeasured = np.full(4, NAN)
    assert_array_equal(law.with_identity(unmeasured), [0, 0, -INF, INF])
    assert_array_equal(law.with_nan(law.with_identity(unmeasured)), unmeasured)
    measured = np.array([8, 0, 3.5, 1])
    assert_array_equal(law.with_identity(measured), measured)
    assert_array_equal(law.with_nan(measured), measured)


def test_arg_follows_the_maximum_and_ties_go_to_the_smaller_index() -> None:
    law = law_of(REDUCTIONS["attention_exact"])
    low, high, also_high = [1, 0, 5, 0], [1, 0, 7, 3], [1, 0, 7, 2]
    assert_array_equal(law.merge(np.array([low, high])), [2, 0, 7, 3])
    assert_array_equal(law.merge(np.array([high, low, also_high])), [3, 0, 7, 2])


@pytest.mark.parametrize("peak", [INF, -INF])
def test_arg_follows_an_infinite_maximum(peak: float) -> None:
    law = law_of(REDUCTIONS["attention_exact"])
    rows = np.array([[1, 0, -INF, 4], [1, 1, peak, 2]])
    assert_array_equal(law.merge(rows), [2, 1, peak, 2])


def test_infinite_sums_of_both_signs_are_nan_and_not_a_warning() -> None:
    law = law_of(REDUCTIONS["mean"])
    assert_array_equal(law.merge(np.array([[1, INF, 1], [1, -INF, 1.0]])), [2, NAN, 2])


def test_nan_in_a_measured_cell_is_not_lost() -> None:
    """Measured and NaN is news; it must not look like 'not measured', nor vanish among finite numbers."""
    law = law_of(REDUCTIONS["moments"])
    merged = law.merge(np.array([[4, NAN, 1, NAN], [4, 2.0, 0, 3.0]]))
    assert_array_equal(merged, [8, NAN, 1, NAN])


def test_a_mean_of_means_is_not_what_comes_out() -> None:
    law = law_of(REDUCTIONS["mean"])
    count, total, _ = law.merge(np.array([[1, 10, 0], [99, 0, 0]]))
    assert total / count == 0.1  # the mean of the two means would be 5


@given(records(most=4))
def test_float32_records_merge_in_float64(rows: np.ndarray) -> None:
    merged = LAW.merge(rows.astype(np.float32))
    assert merged.dtype == np.float64
    assert_array_equal(merged, LAW.merge(rows))


def test_counts_beyond_float32_are_exact() -> None:
    law = law_of(REDUCTIONS["mean"])
    row = np.array([2**24, 2**24, 0], dtype=np.float32)
    one = np.array([1, 1, 0], dtype=np.float32)
    assert law.merge(np.array([row, one]))[0] == 2**24 + 1


def test_the_laws_bite() -> None:
    """Meta-test: a merge that averages, or one that forgets the units, fails the laws above."""
    rows = np.array([[1.0, 10.0, 0.0], [3.0, 0.0, 0.0], [NAN, NAN, NAN]])
    assert not np.array_equal(np.nanmean(rows, axis=0), law_of(REDUCTIONS["mean"]).merge(rows))
    assert np.isnan(rows.sum(axis=0)).all()


@pytest.mark.parametrize("reduction", REDUCTIONS.values(), ids=REDUCTIONS)
def test_a_reduction_begins_with_its_count_and_its_sums(reduction: Reduction) -> None:
    ops = [f.op for f in reduction.fields]
    assert reduction.fields[0] == Field("count", "sum")
    assert ops[: reduction.sums] == ["sum"] * reduction.sums
    assert "sum" not in ops[reduction.sums :]
    assert set(ops) <= set(IDENTITY)
    assert len({f.name for f in reduction.fields}) == len(ops)
    assert [reduction.index(f.name) for f in reduction.fields] == list(range(len(ops)))


@pytest.mark.parametrize(
    "fields",
    [
        (Field("sum", "sum"), Field("count", "sum")),
        (Field("count", "sum"), Field("head", "arg")),
        (Field("count", "sum"), Field("max", "max"), Field("sum", "sum")),
    ],
    ids=["count not first", "arg without max", "sum after max"],
)
def test_a_malformed_reduction_is_refused(fields: tuple[Field, ...]) -> None:
    with pytest.raises(AssertionError, match="broken: "):
        Reduction("broken", fields)
