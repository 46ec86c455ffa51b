"""Formulas: named functions from accumulated fields to the value of a signal, applied when the value is read.

Each takes the fields that the signal names, in that order, along the last axis: float64 (..., k) -> (...).
NaN means not measured, and gives NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from stabwatch.signals.reductions import EDGES

Array = NDArray[np.float64]
Formula = Callable[[Array], Array]


def same(x: Array) -> Array:
    """The field itself."""
    return x[..., 0]


def negated(x: Array) -> Array:
    """Minus the field: a minimum that was accumulated as a maximum."""
    return -x[..., 0]


def mean(x: Array) -> Array:
    """sum / count; with a third field, the number of elements left out of the sum: sum / (count - left out)."""
    return x[..., 0] / (x[..., 1] - x[..., 2:].sum(axis=-1))


def rms(x: Array) -> Array:
    """sqrt(sumsq / count); with a third field, as `mean`."""
    return np.sqrt(mean(x))


def norm(x: Array) -> Array:
    """Square root of the sum of all sums of squares: the norm over any number of accumulators.

    An accumulator without a value (a parameter without a gradient) adds nothing; NaN when none has a value.
    """
    return np.sqrt(total(x))


def root_ratio(x: Array) -> Array:
    """sqrt(a / b) of two sums of squares."""
    return np.sqrt(x[..., 0] / x[..., 1])


def snr(x: Array) -> Array:
    """-10 log10(a / b) of the sums of squares of an error and of what it is an error of: at most 144 dB, 2^-24."""
    return -10 * np.log10(np.maximum(x[..., 0] / x[..., 1], 2.0**-48))


def relative_norm(x: Array) -> Array:
    """sqrt(a / b) of two sums of squares; NaN where b is zero, which nothing can be compared with."""
    return np.sqrt(x[..., 0] / np.where(x[..., 1] > 0, x[..., 1], np.nan))


def total(x: Array) -> Array:
    """Sum over the accumulators that were measured; NaN when none was."""
    return np.where(np.isnan(x).all(axis=-1), np.nan, np.nansum(x, axis=-1))


def share(x: Array) -> Array:
    """a / (a + b)."""
    return x[..., 0] / (x[..., 0] + x[..., 1])


def quotient(x: Array) -> Array:
    """a / b."""
    return x[..., 0] / x[..., 1]


def cosine(x: Array) -> Array:
    """dot / sqrt(a b) of a dot product and two sums of squares."""
    return x[..., 0] / np.sqrt(x[..., 1] * x[..., 2])


def kurtosis(x: Array) -> Array:
    """Fourth moment over the squared second moment, about zero: sum of fourth powers, sumsq, count. Normal: 3."""
    return x[..., 0] * x[..., 2] / x[..., 1] ** 2


def peak(x: Array) -> Array:
    """Maximum over root mean square: maximum, sumsq, count, left out."""
    return x[..., 0] / rms(x[..., 1:])


def stable_rank(x: Array) -> Array:
    """Squared Frobenius norm over the squared largest singular value: sumsq, measurements, singular value."""
    return x[..., 0] / x[..., 1] / x[..., 2] ** 2


def rms_ratio(x: Array) -> Array:
    """Ratio of two root mean squares: sumsq and count of each."""
    return np.sqrt(x[..., 0] / x[..., 1] * x[..., 3] / x[..., 2])


def deviation(x: Array) -> Array:
    """Standard deviation: sum, sum of squares, count."""
    return np.sqrt(np.maximum(x[..., 1] / x[..., 2] - (x[..., 0] / x[..., 2]) ** 2, 0.0))


def fp16_headroom(x: Array) -> Array:
    """log2(65504 / maximum), where 65504 is the largest number of float16; negative above it; NaN for 0."""
    return np.log2(65504.0) - np.log2(np.where(x[..., 0] > 0, x[..., 0], np.nan))


def median(x: Array) -> Array:
    """Median of a distribution: count, number of values at or above each edge, maximum. See `quantile`."""
    return quantile(x, 0.5)


def percentile99(x: Array) -> Array:
    """99th percentile of a distribution; fields as for `median`."""
    return quantile(x, 0.01)


def quantile(x: Array, above: float) -> Array:
    """The value that a share `above` of the distribution reaches. Fields: as for `median`.

    Interpolated linearly in the logarithm between two edges (a factor of 1.41), at most the maximum, and clamped to
    the outermost edges.
    """
    share = x[..., 1:-1] / x[..., :1]
    last = np.maximum((share >= above).sum(axis=-1) - 1, 0)[..., None]
    here, following = (np.take_along_axis(share, np.minimum(last + i, len(EDGES) - 1), axis=-1) for i in (0, 1))
    part = np.where(here > following, np.clip((here - above) / (here - following), 0.0, 1.0), 0.0)
    logs = np.interp(last + part, np.arange(len(EDGES)), np.log2(EDGES))
    found = np.fmin(np.exp2(logs[..., 0]), np.maximum(x[..., -1], EDGES[0]))
    return np.where(np.isnan(share[..., 0]), np.nan, found)


def exponential(x: Array) -> Array:
    """exp(field): a ratio, of its logarithm."""
    return np.exp(x[..., 0])


def inverse_exponential(x: Array) -> Array:
    """exp(-field): the smallest ratio, of minus its logarithm."""
    return np.exp(-x[..., 0])


def effective_share(x: Array) -> Array:
    """Effective sample size of weights over their number: sum, sum of squares, count (Kish 1965)."""
    return x[..., 0] ** 2 / (x[..., 1] * x[..., 2])


def mean_of_others(x: Array) -> Array:
    """Mean without an extreme: sum, largest or smallest, count; NaN for fewer than two."""
    total, extreme, n = x[..., 0], x[..., 1], x[..., 2]
    return (total - extreme) / np.where(n > 1, n - 1, np.nan)


def standard_error(x: Array) -> Array:
    """Standard error of a mean: sum, sum of squares, count; NaN for fewer than two."""
    total, squares, n = x[..., 0], x[..., 1], x[..., 2]
    return np.sqrt(np.maximum(squares / n - (total / n) ** 2, 0.0) / np.where(n > 1, n - 1, np.nan))


ARITY: dict[str, tuple[int, ...]] = {
    "same": (1,), "negated": (1,), "mean": (2, 3), "rms": (2, 3),
    "root_ratio": (2,), "snr": (2,), "relative_norm": (2,), "share": (2,), "quotient": (2,), "cosine": (3,),
    "kurtosis": (3,), "peak": (4,), "stable_rank": (3,), "standard_error": (3,), "mean_of_others": (3,),
    "exponential": (1,), "inverse_exponential": (1,), "effective_share": (3,),
    "rms_ratio": (4,), "deviation": (3,), "fp16_headroom": (1,),
    "median": (len(EDGES) + 2,), "percentile99": (len(EDGES) + 2,),
}  # fmt: skip
"""Number of fields of each formula; a formula that is not listed takes any number."""

FORMULAS: dict[str, Formula] = {
    f.__name__: f
    for f in (
        same, negated, mean, rms, norm, root_ratio, snr, relative_norm, total,
        share, quotient, cosine, kurtosis, peak, stable_rank, standard_error, mean_of_others,
        rms_ratio, deviation, fp16_headroom, median, percentile99, exponential, inverse_exponential, effective_share,
    )
}  # fmt: skip


def evaluate(name: str, fields: NDArray[np.floating]) -> Array:
    """Apply a formula by name. Division by zero gives inf or NaN without a warning."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return FORMULAS[name](np.asarray(fields, dtype=np.float64))
