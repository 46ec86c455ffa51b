"""Aggregates to values, against the tensors they were made from, in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from stabwatch.signals.formulas import ARITY, FORMULAS, evaluate

NAN, INF = np.nan, np.inf
TENSORS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30).map(np.array)


@given(TENSORS)
def test_mean(x: np.ndarray) -> None:
    assert evaluate("mean", np.array([x.sum(), x.size])) == x.sum() / x.size


@given(TENSORS)
def test_rms(x: np.ndarray) -> None:
    # abs=: squares of numbers below 1e-154 are zero in float64, on both sides
    assert evaluate("rms", np.array([np.square(x).sum(), x.size])) == pytest.approx(
        np.linalg.norm(x) / np.sqrt(x.size), rel=1e-12, abs=1e-150
    )


@given(st.lists(TENSORS, min_size=1, max_size=4))
def test_norm_over_cells_is_the_norm_of_the_whole(parts: list[np.ndarray]) -> None:
    sumsq = np.array([np.square(p).sum() for p in parts])
    assert evaluate("norm", sumsq) == pytest.approx(np.linalg.norm(np.concatenate(parts)), rel=1e-12, abs=1e-150)


@given(TENSORS, st.floats(0.1, 10))
def test_root_ratio(x: np.ndarray, factor: float) -> None:
    x = x + 2e6  # away from zero
    assert evaluate("root_ratio", np.array([np.square(x * factor).sum(), np.square(x).sum()])) == pytest.approx(factor)


@given(TENSORS, st.floats(1e-3, 10))
def test_snr_is_that_of_amplitudes_in_decibels(x: np.ndarray, factor: float) -> None:
    x = x + 2e6
    found = evaluate("snr", np.array([np.square(x * factor).sum(), np.square(x).sum()]))
    assert found == pytest.approx(-20 * np.log10(factor), abs=1e-9)
    assert evaluate("snr", np.array([0.0, 1.0])) == pytest.approx(20 * np.log10(2.0**24))


def test_same_and_total() -> None:
    assert evaluate("same", np.array([3.5])) == 3.5
    assert evaluate("total", np.array([1.0, NAN, 2.0])) == 3.0


every_formula = pytest.mark.parametrize(("name", "reads"), [(f, n) for f in FORMULAS for n in ARITY.get(f, (1, 2))])


@every_formula
def test_nothing_measured_is_nan(name: str, reads: int) -> None:
    assert_array_equal(evaluate(name, np.full((3, reads), NAN)), [NAN] * 3)


@every_formula
def test_formulas_work_along_the_last_axis(name: str, reads: int) -> None:
    x = np.arange(1.0, 1.0 + 12 * reads).reshape(3, 4, reads) ** 2
    out = evaluate(name, x)
    assert out.shape == (3, 4) and out.dtype == np.float64
    assert_array_equal(out, [[evaluate(name, cell) for cell in row] for row in x])


@every_formula
def test_float32_aggregates_are_computed_in_float64(name: str, reads: int) -> None:
    x = np.resize(np.array([3.0, 7.0, 5.0, 2.0], dtype=np.float32), (1, reads))
    assert_array_equal(evaluate(name, x), evaluate(name, x.astype(np.float64)))


@given(TENSORS.filter(lambda x: np.square(x).sum() > 1e-3))
def test_of_one_tensor(x: np.ndarray) -> None:
    n, squares = float(x.size), np.square(x).sum()
    assert evaluate("kurtosis", np.array([(x**4).sum(), squares, n])) == pytest.approx(
        np.mean(x**4) / np.mean(x**2) ** 2, rel=1e-9
    )
    peak = np.abs(x).max()
    assert evaluate("peak", np.array([peak, squares, n, 0])) == pytest.approx(peak / np.sqrt(np.mean(x**2)), rel=1e-9)
    if x.size > 1:
        error = np.std(x) / np.sqrt(x.size - 1)
        found = evaluate("standard_error", np.array([x.sum(), squares, n]))
        assert found == pytest.approx(error, rel=1e-6, abs=1e-7 * np.abs(x).max())


def test_of_two_tensors() -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 9))
    assert evaluate("cosine", np.array([x @ y, x @ x, y @ y])) == pytest.approx(
        x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    )
    assert evaluate("share", np.array([1.0, 3.0])) == 0.25
    assert evaluate("quotient", np.array([1.0, 4.0])) == 0.25


def test_stable_rank() -> None:
    w = np.random.default_rng(0).standard_normal((5, 7))
    sigma = np.linalg.svd(w, compute_uv=False)
    found = evaluate("stable_rank", np.array([2 * np.square(w).sum(), 2.0, sigma[0]]))  # measured twice
    assert found == pytest.approx(np.square(sigma).sum() / sigma[0] ** 2)


def test_division_by_zero_and_overflow_are_values_not_warnings() -> None:
    assert_array_equal(evaluate("root_ratio", np.array([[1.0, 0.0], [0.0, 0.0]])), [INF, NAN])
    assert evaluate("mean", np.array([INF, 2.0])) == INF
    assert evaluate("total", np.array([1e308, 1e308])) == INF


def test_a_norm_whose_parts_are_infinite_is_infinite() -> None:
    assert_allclose(evaluate("norm", np.array([[1.0, INF], [4.0, NAN]])), [INF, 2.0])
