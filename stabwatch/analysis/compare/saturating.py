"""The law y = a x^b + c: what is left falls as a power, down to a floor that more of x does not remove.

Fitted as in Hoffmann et al. 2022 (arXiv:2203.15556) and LAION's scaling laws for comparison: the least sum of Huber's
function of the errors of ln y (delta 1e-3, so that outliers count little), from many starts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Array = NDArray[np.float64]
DELTA = 1e-3
LEAST_POINTS = 4
"""Different values of x: three constants, and one to hold out."""
SAMPLES = 100
"""Draws of the bootstrap."""
_POWERS = (-1.5, -0.7, -0.35, -0.15, -0.05)
_FLOORS = (0.0, 0.5, 0.9, 0.99)
_BOUNDS = ((-50.0, 50.0), (-4.0, 0.0), (-30.0, 30.0))


@dataclass(frozen=True)
class Saturating:
    """scale a, exponent b, floor c, with 95 % intervals of the last two. unit: what x was divided by for the fit.

    held_out: the relative error, in ln y, of the law without the points of the largest x at those points. draws:
    constants of the bootstrap, float64 (SAMPLES, 3); spread: standard deviation of ln y around the law (robust).
    """

    unit: float
    constants: Array
    draws: Array
    spread: float
    held_out: float

    @property
    def exponent(self) -> float:
        """b."""
        return float(self.constants[1])

    @property
    def floor(self) -> float:
        """c."""
        return float(np.exp(self.constants[2]))

    @property
    def scale(self) -> float:
        """a."""
        return float(np.exp(self.constants[0] - self.constants[1] * math.log(self.unit)))

    @property
    def exponents(self) -> tuple[float, float]:
        """95 % interval of b."""
        low, high = np.quantile(self.draws[:, 1], (0.025, 0.975))
        return float(low), float(high)

    @property
    def floors(self) -> tuple[float, float]:
        """95 % interval of c."""
        low, high = np.exp(np.quantile(self.draws[:, 2], (0.025, 0.975)))
        return float(low), float(high)

    def at(self, x: float) -> tuple[float, float, float]:
        """(value, low, high): y of a further point, with its 95 % interval from the bootstrap and the spread."""
        t = np.array([math.log(x / self.unit)])
        draw = np.random.default_rng(0)
        drawn = np.array([_law(c, t)[0] for c in self.draws]) + self.spread * draw.standard_normal(len(self.draws))
        low, high = np.exp(np.quantile(drawn, (0.025, 0.975)))
        return float(np.exp(_law(self.constants, t)[0])), float(low), float(high)


def fit(x: Sequence[float], y: Sequence[float]) -> Saturating:
    """x, y: positive. Raises ValueError with the reason in words where there is no law."""
    xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
    different = np.unique(xs)
    if len(different) < LEAST_POINTS:
        raise ValueError(f"{len(different)} different sizes, but a law with a floor needs at least {LEAST_POINTS}")
    unit = float(np.exp(np.log(xs).mean()))
    t, v = np.log(xs / unit), np.log(ys)
    if np.polyfit(t, v, 1)[0] >= 0:
        raise ValueError("it does not fall with the size")
    best = _best(t, v)
    rest = v - _law(best, t)
    spread = 1.4826 * float(np.median(np.abs(rest - np.median(rest)))) if len(v) > LEAST_POINTS else float(rest.std())
    largest = xs == different[-1]
    without = _best(t[~largest], v[~largest])
    held_out = float(np.median(v[largest] - _law(without, t[largest])))
    return Saturating(unit, best, _bootstrap(t, v, best), spread, held_out)


def extrapolated(x: Array, y: Array, new: float) -> float:
    """ln y of a further point by least squares over a grid of floors, without an interval. x, y, new: logarithms."""
    found = []
    for floor in np.exp(y.min()) * np.linspace(0.0, 0.98, 50):
        slope, constant = np.polyfit(x, np.log(np.exp(y) - floor), 1)
        error = np.log(floor + np.exp(slope * x + constant)) - y
        found.append((float(error @ error), math.log(floor + math.exp(slope * new + constant))))
    return min(found)[1]


def _law(constants: Array, t: Array) -> Array:
    """ln y at ln x."""
    found: Array = np.logaddexp(constants[0] + constants[1] * t, constants[2])
    return found


def _cost(constants: Array, t: Array, v: Array) -> tuple[float, Array]:
    """Sum of Huber's function of the errors over delta, and its derivative."""
    power = constants[0] + constants[1] * t
    value = np.logaddexp(power, constants[2])
    error = value - v
    slope = np.clip(error / DELTA, -1.0, 1.0)
    cost = np.where(np.abs(error) <= DELTA, error**2 / (2 * DELTA), np.abs(error) - DELTA / 2).sum()
    share = np.exp(power - value)
    return float(cost), np.array([(slope * share).sum(), (slope * share * t).sum(), (slope * (1 - share)).sum()])


def _best(t: Array, v: Array) -> Array:
    """The constants with the least cost, from many starts."""
    least = float(np.exp(v.min()))
    found = []
    for power in _POWERS:
        for share in _FLOORS:
            floor = max(share * least, 1e-9)
            a = math.log(max(float(np.exp(v[np.argmin(t)])) - floor, 1e-9)) - power * float(t.min())
            found.append(_from(np.array([a, power, math.log(floor)]), t, v))
    return min(found, key=lambda one: one[0])[1]


def _from(start: Array, t: Array, v: Array) -> tuple[float, Array]:
    done = minimize(_cost, start, (t, v), "L-BFGS-B", jac=True, bounds=_BOUNDS, options={"maxiter": 500})
    return float(done.fun), np.asarray(done.x, np.float64)


def _bootstrap(t: Array, v: Array, best: Array) -> Array:
    """The constants of laws of points that are drawn again, at least three different ones."""
    draw = np.random.default_rng(0)
    out: list[Array] = []
    while len(out) < SAMPLES:
        chosen = draw.integers(len(t), size=len(t))
        if len(np.unique(t[chosen])) >= 3:
            out.append(_from(best, t[chosen], v[chosen])[1])
    return np.stack(out)
