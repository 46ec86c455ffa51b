"""How partials become the value of a signal: named functions of float64 arrays, applied at the very end.

Each takes the slots that the signal names, in that order, along the last axis: shape (..., k) -> (...).
NaN in means not measured and gives NaN out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Formula = Callable[[Array], Array]


def same(x: Array) -> Array:
    """The one partial itself."""
    return x[..., 0]


def mean(x: Array) -> Array:
    """sum / count; with a third partial, the elements that are not in the sum, sum / (count - left out)."""
    return x[..., 0] / (x[..., 1] - x[..., 2:].sum(axis=-1))


def rms(x: Array) -> Array:
    """sqrt(sumsq / count); with a third partial, as `mean`."""
    return np.sqrt(mean(x))


def norm(x: Array) -> Array:
    """sqrt of the sum of all sums of squares: a norm over any number of cells measured together.

    A cell without a value (a parameter that got no gradient) adds nothing; NaN when there is none at all.
    """
    return np.sqrt(total(x))


def root_ratio(x: Array) -> Array:
    """sqrt(a / b) of two sums of squares."""
    return np.sqrt(x[..., 0] / x[..., 1])


def total(x: Array) -> Array:
    """Sum over the cells that were measured, NaN when none was."""
    return np.where(np.isnan(x).all(axis=-1), np.nan, np.nansum(x, axis=-1))


FORMULAS: dict[str, Formula] = {f.__name__: f for f in (same, mean, rms, norm, root_ratio, total)}


def evaluate(name: str, partials: NDArray[np.floating]) -> Array:
    """Apply a formula by name; division by zero gives inf or NaN, silently."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return FORMULAS[name](np.asarray(partials, dtype=np.float64))
