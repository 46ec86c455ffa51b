"""What smaller runs say of a larger one: the law of the loss, the transfer of the learning rate, and the ladder."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from stabwatch.analysis.compare.curve_set import CurveSet
from stabwatch.analysis.compare.saturating import Saturating, extrapolated, fit
from stabwatch.runlog import plain

Array = NDArray[np.float64]
LEAST_LADDER = 4
"""Smaller runs of one learning rate: two for the line, two to know how far runs are from it."""
LADDER_STEPS = 32
LEAST_RANGE = 2.0
"""Largest over smallest size from which an exponent is given."""
APART = 3
"""Points in a row outside of the interval from which a run has left its ladder."""
LEVEL = 0.95


@dataclass(frozen=True)
class LossLaw:
    """The best loss of each model size as a size^b + c; or why there is none (then `refused` is not empty)."""

    points: tuple[tuple[float, float], ...]
    refused: str = ""
    scale: float = math.nan
    exponent: float = math.nan
    exponents: tuple[float, float] = (math.nan, math.nan)
    floor: float = math.nan
    floors: tuple[float, float] = (math.nan, math.nan)
    held_out: float = math.nan
    prediction: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Rung:
    """One model size. rate: its best learning rate, from a parabola in ln(rate); loss: there.

    excess: how much more loss the next size has at this rate than at its own best. gap: this size's loss less the next
    one's. Both are NaN for the largest size.
    """

    parameters: float
    rate: float
    loss: float
    excess: float
    gap: float


@dataclass(frozen=True)
class Transfer:
    """drift: exponent of the best rate over the size. excess, gap: exponents of both over the size.

    fast: the excess falls faster, so that a search at a smaller size pays; None where that is not known.
    """

    rungs: tuple[Rung, ...]
    drift: float
    excess: float
    gap: float
    fast: bool | None


@dataclass(frozen=True)
class Ladder:
    """The largest run beside what the smaller ones of its learning rate say.

    left: the first step from which on its loss is outside of the interval, None if it is inside at the end; value, low,
    high: its loss and the interval there, or at the last step.
    """

    run: str
    smaller: int
    left: int | None
    step: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Scaling:
    """Everything that runs of several sizes say of a larger one. transfer, ladder: None without the runs for it."""

    loss: LossLaw
    transfer: Transfer | None
    ladder: Ladder | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; numbers that are not finite are None."""
        return plain(asdict(self))


def scaling(subjects: Sequence[CurveSet], parameters: float | None = None) -> Scaling:
    """parameters: of a run to predict."""
    known = [s for s in subjects if math.isfinite(s.parameters)]
    sizes: dict[float, dict[float, list[float]]] = {}
    for s in known:
        end = s.end("loss")
        if math.isfinite(end) and end > 0:
            sizes.setdefault(s.parameters, {}).setdefault(s.learning_rate, []).append(end)
    losses = {n: {r: float(np.mean(v)) for r, v in rates.items()} for n, rates in sorted(sizes.items())}
    return Scaling(loss_law(losses, parameters), transfer(losses), ladder(known))


def loss_law(losses: Mapping[float, Mapping[float, float]], parameters: float | None = None) -> LossLaw:
    """losses: by model size and learning rate."""
    points = tuple((n, min(rates.values())) for n, rates in losses.items())
    if not points:
        return LossLaw(points, "no run has a model size and a positive loss")
    try:
        found: Saturating = fit(*zip(*points, strict=True))
    except ValueError as error:
        return LossLaw(points, str(error))
    return LossLaw(
        points, "", found.scale, found.exponent, found.exponents, found.floor, found.floors, found.held_out,
        found.at(parameters) if parameters is not None else None,
    )  # fmt: skip


def transfer(losses: Mapping[float, Mapping[float, float]]) -> Transfer | None:
    """None unless two sizes or more have a best learning rate between others."""
    found = {n: best for n, rates in losses.items() if (best := _parabola(rates)) is not None}
    if len(found) < 2:
        return None
    ordered = sorted(found.items())
    rungs = []
    for (n, (_, x, y)), (_, (curve, _, least)) in itertools.pairwise(ordered):
        rungs.append(Rung(n, math.exp(x), y, max(0.0, float(np.polyval(curve, x)) - least), y - least))
    n, (_, x, y) = ordered[-1]
    rungs.append(Rung(n, math.exp(x), y, math.nan, math.nan))
    excess, gap = (_exponent([(r.parameters, getattr(r, name)) for r in rungs]) for name in ("excess", "gap"))
    fast = excess < gap if math.isfinite(excess) and math.isfinite(gap) else None
    return Transfer(tuple(rungs), _exponent([(r.parameters, r.rate) for r in rungs]), excess, gap, fast)


def _parabola(rates: Mapping[float, float]) -> tuple[Array, float, float] | None:
    """(coefficients in ln rate, ln of the best rate, loss there) by the lowest point and two on either side at most."""
    known = sorted((math.log(r), loss) for r, loss in rates.items() if r > 0 and math.isfinite(loss))
    if len(known) < 3:
        return None
    x, y = np.array(known).T
    at = int(np.argmin(y))
    if at in (0, len(x) - 1):
        return None  # the best rate is outside of those that were tried
    near = slice(max(0, at - 2), at + 3) if len(x) > 4 else slice(at - 1, at + 2)
    curve: Array = np.polyfit(x[near], y[near], 2)
    if curve[0] <= 0:
        curve = np.polyfit(x[at - 1 : at + 2], y[at - 1 : at + 2], 2)
    best = float(np.clip(-curve[1] / (2 * curve[0]), x[at - 1], x[at + 1]))
    return curve, best, float(np.polyval(curve, best))


def _exponent(points: Sequence[tuple[float, float]]) -> float:
    some = [(x, y) for x, y in points if x > 0 and y > 0 and math.isfinite(y)]
    if not some or max(x for x, _ in some) < LEAST_RANGE * min(x for x, _ in some):
        return math.nan
    x, y = np.log(some).T
    return float(np.polyfit(x, y, 1)[0])


def ladder(subjects: Sequence[CurveSet]) -> Ladder | None:
    """The largest run against smaller ones of its learning rate; None with fewer than `LEAST_LADDER` of those."""
    if not subjects:
        return None
    largest = max(subjects, key=lambda s: s.parameters)
    smaller = [s for s in subjects if s.parameters < largest.parameters and s.learning_rate == largest.learning_rate]
    if len({s.parameters for s in smaller}) < LEAST_LADDER:
        return None
    curves = [_smooth(s) for s in (*smaller, largest)]
    steps = curves[-1][0]
    last = min(c[0][-1] for c in curves if len(c[0]))
    at = np.unique(np.geomspace(max(8, steps[0]), max(9, last), LADDER_STEPS).astype(np.int64)) if len(steps) else steps
    at = at[at <= last]
    if not len(at):
        return None
    values = np.stack([np.interp(at, *c) for c in curves])  # ln loss
    x = np.log([s.parameters for s in smaller])
    new = math.log(largest.parameters)
    low, high = np.array([_interval(x, new, c) for c in values[:-1].T]).T
    mine = np.exp(values[-1])
    outside = (mine < low) | (mine > high) | ~np.isfinite(mine)
    left = next((i for i in range(len(at)) if outside[i:].all() and len(at) - i >= APART), None)
    i = len(at) - 1 if left is None else left
    return Ladder(
        largest.name, len(smaller), None if left is None else int(at[left]), int(at[i]), float(mine[i]), float(low[i]),
        float(high[i]),
    )  # fmt: skip


def _smooth(subject: CurveSet) -> tuple[Array, Array]:
    """(steps, ln loss): medians over a sixteenth of the steps before each."""
    steps, values = subject.curve("loss")
    values = np.where(values > 0, values, np.nan)
    starts = np.searchsorted(steps, steps - np.maximum(steps // 16, 1), side="right")
    with np.errstate(all="ignore"):
        found = [np.median(values[a : i + 1]) for i, a in enumerate(starts)]
    return steps.astype(np.float64), np.log(np.array(found))


def _interval(x: Array, new: float, y: Array) -> tuple[float, float]:
    """95 % prediction interval of the loss of a further run; 0 to infinity if unknown.

    By a line in the logarithms; where a law with a floor gives another value, up to that and as far around it.
    """
    good = np.isfinite(y)
    if good.sum() < LEAST_LADDER:
        return 0.0, math.inf
    x, y = x[good], y[good]
    slope, constant = np.polyfit(x, y, 1)
    rest = y - slope * x - constant
    freedom = len(x) - 2
    sigma = math.sqrt(float(rest @ rest) / freedom)
    far = math.sqrt(1 + 1 / len(x) + (new - x.mean()) ** 2 / float(((x - x.mean()) ** 2).sum()))
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * sigma * far
    centres = [slope * new + constant, *([extrapolated(x, y, new)] if slope < 0 else [])]
    return math.exp(min(centres) - half), math.exp(max(centres) + half)
