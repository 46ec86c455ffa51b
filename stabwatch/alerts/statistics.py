"""Robust statistics of a few dozen points: medians, spreads, ranks, slopes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def median(values: Array) -> float:
    """Median of finite numbers; NaN for none. (np.median takes ten times as long on a few dozen numbers.)"""
    n = len(values)
    if not n:
        return math.nan
    ordered = values.copy()
    ordered.sort()
    return float(ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def median_of_few(values: Sequence[float]) -> float:
    """The same of some finite numbers in a list, of which an array costs more than to sort them."""
    ordered, n = sorted(values), len(values)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2 if n else math.nan


def row_medians(rows: Array) -> Array:
    """Median of the finite numbers of each row, (n,), of rows (n, columns); NaN for none."""
    finite = np.isfinite(rows)
    count = finite.sum(axis=1)
    ordered = np.sort(np.where(finite, rows, np.nan), axis=1) if rows.shape[1] else np.full((len(rows), 1), np.nan)
    at = np.arange(len(rows))
    return np.where(count > 0, (ordered[at, (count - 1) // 2] + ordered[at, count // 2]) / 2, np.nan)


def middle(ordered: Array) -> Array:
    """Median of each row of ascending numbers, (n,), of rows (n, columns)."""
    columns = ordered.shape[1]
    return np.asarray((ordered[:, (columns - 1) // 2] + ordered[:, columns // 2]) / 2)


def row_spreads(rows: Array) -> Array:
    """`robust_spread` of each row of finite numbers, (n,), of rows (n, columns)."""
    centre = middle(np.sort(rows, axis=1))
    return 1.4826 * middle(np.sort(np.abs(rows - centre[:, None]), axis=1))


def column_medians(columns: Array) -> Array:
    """Lower median of each column, without its NaNs; NaN for none. columns: (points, series)."""
    ordered = np.sort(columns, axis=0)
    return ordered[((~np.isnan(columns)).sum(axis=0) - 1) // 2, np.arange(columns.shape[1])]


def robust_spread(values: Array) -> float:
    """1.4826 times the median absolute deviation: the standard deviation, if the values were normal."""
    return 1.4826 * median(np.abs(values - median(values)))


def exceeds(some: Array, others: Array) -> float:
    """Share of all pairs in which the value of `some` is larger; ties count half (Mann-Whitney U over all pairs).

    0.5: no difference. 1: every value of `some` exceeds every one of `others`. It has no scale and is robust to
    outliers.
    """
    difference = some[:, None] - others[None, :]
    ties = difference.size - np.count_nonzero(difference)
    return (np.count_nonzero(difference > 0) + ties / 2) / difference.size


def exceedances(some: Array, others: Array) -> Array:
    """`exceeds` of each row of some, (n, points), with that of others, (n, other points)."""
    above = np.zeros(len(some), dtype=np.int64)
    for column in some.T:
        above += (column[:, None] > others).sum(axis=1) + (column[:, None] >= others).sum(axis=1)
    return above / 2 / (some.shape[1] * others.shape[1])


def slope(steps: Array, values: Array) -> Array:
    """Least-squares slope of each row over its measured points; NaN for fewer than four."""
    seen = ~np.isnan(values)
    n = seen.sum(axis=1)
    x = np.where(seen, steps, 0.0)
    y = np.where(seen, values, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_x, mean_y = x.sum(axis=1) / n, y.sum(axis=1) / n
        dx = np.where(seen, steps - mean_x[:, None], 0.0)
        dy = np.where(seen, values - mean_y[:, None], 0.0)
        out = (dx * dy).sum(axis=1) / (dx * dx).sum(axis=1)
    return np.where(n >= 4, out, np.nan)


def carried(now: Array, before: Array) -> Array:
    """Each number, or where it is NaN the last one above it in its column, or the one before all: (n, columns)."""
    at = np.maximum.accumulate(np.where(np.isnan(now), -1, np.arange(len(now))[:, None]), axis=0)
    return np.where(at < 0, before, np.take_along_axis(now, np.maximum(at, 0), axis=0))


def last_places(there: Bools) -> Ints:
    """The last row that is true in each column, (columns,); the last of all rows for a column without one."""
    return np.asarray(len(there) - 1 - there[::-1].argmax(axis=0))


def run_lengths(met: Bools, before: int) -> Ints:
    """How many in a row are true up to each one, (n,), after so many before the first."""
    at = np.arange(len(met))
    last = np.maximum.accumulate(np.where(met, -1, at))
    return np.where(last < 0, at + 1 + before, at - last)


LEAST_PAST = 8


TINY = 1e-30


LEAST_SPREAD = 0.02
"""A spread below 2% counts as 2%, because a deterministic series has none."""


def against(past: Array, x: float) -> tuple[float, float]:
    """Robust z-score of a value and its ratio to the median of its past; NaN for fewer than eight points."""
    if len(past) < LEAST_PAST:
        return math.nan, math.nan
    centre = median(past)
    size, ratio = max(abs(centre), TINY), _ratio(x, centre)
    if x > 0 and past.min() > 0:
        shown = np.log(past)
        return (math.log(x) - median(shown)) / max(robust_spread(shown), LEAST_SPREAD), ratio
    return (x - centre) / max(robust_spread(past), LEAST_SPREAD * size), ratio


def against_many(past: Array, x: Array) -> tuple[Array, Array]:
    """`against` of each value, (n,) and (n,). past: the windows before them, (n, points), at least eight points."""
    ordered = np.sort(past, axis=1)
    centre = middle(ordered)
    size = np.maximum(np.abs(centre), TINY)
    positive = (x > 0) & (ordered[:, 0] > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        shown = np.where(positive[:, None], np.log(past), past)
    now = np.array([math.log(v) if log else v for v, log in zip(x.tolist(), positive.tolist(), strict=True)])
    least = np.where(positive, LEAST_SPREAD, LEAST_SPREAD * size)
    distance = now - middle(np.sort(shown, axis=1))
    return distance / np.maximum(row_spreads(shown), least), 1 + (x - centre) / size


def after_each(past: Array, x: Array) -> Array:
    """A window (points,) before any of the values that follow it (n,), and after each: (1 + n, points)."""
    return sliding_window_view(np.concatenate([past, x]), len(past))


def _ratio(x: float, centre: float) -> float:
    """x / centre where the centre is positive."""
    return 1 + (x - centre) / max(abs(centre), TINY)


def shifted(past: Array, now: Array) -> tuple[float, float]:
    """Share of pairs in which a value of now exceeds one of the past, and the ratio of their medians.

    NaN for fewer than eight points.
    """
    if len(past) < LEAST_PAST:
        return math.nan, math.nan
    return exceeds(now, past), _ratio(median(now), median(past))


def any_measured(values: Array, columns: Ints) -> Bools:
    """Whether any of some columns has a number in each record, (n,) of (n, series)."""
    if not len(columns):
        return np.zeros(len(values), dtype=bool)
    return np.asarray(~np.isnan(np.take(values, columns, axis=1)).all(axis=1))
