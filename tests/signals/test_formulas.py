"""Partials to values, against the tensors they were made from, in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from stabwatch.signals.formulas import FORMULAS, evaluate

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


def test_same_and_total() -> None:
    assert evaluate("same", np.array([3.5])) == 3.5
    assert evaluate("total", np.array([1.0, NAN, 2.0])) == 3.0


@pytest.mark.parametrize("name", FORMULAS)
def test_nothing_measured_is_nan(name: str) -> None:
    assert_array_equal(evaluate(name, np.full((3, 2), NAN)), [NAN] * 3)


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas_work_along_the_last_axis(name: str) -> None:
    x = np.arange(1.0, 25.0).reshape(3, 4, 2)
    out = evaluate(name, x)
    assert out.shape == (3, 4) and out.dtype == np.float64
    assert_array_equal(out, [[evaluate(name, cell) for cell in row] for row in x])


@pytest.mark.parametrize("name", FORMULAS)
def test_float32_partials_are_computed_in_float64(name: str) -> None:
    x = np.array([[3.0, 7.0]], dtype=np.float32)
    assert_array_equal(evaluate(name, x), evaluate(name, x.astype(np.float64)))


def test_division_by_zero_and_overflow_are_values_not_warnings() -> None:
    assert_array_equal(evaluate("root_ratio", np.array([[1.0, 0.0], [0.0, 0.0]])), [INF, NAN])
    assert evaluate("mean", np.array([INF, 2.0])) == INF
    assert evaluate("total", np.array([1e308, 1e308])) == INF


def test_a_norm_whose_parts_are_infinite_is_infinite() -> None:
    assert_allclose(evaluate("norm", np.array([[1.0, INF], [4.0, NAN]])), [INF, 2.0])
