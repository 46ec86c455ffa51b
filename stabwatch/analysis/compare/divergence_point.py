"""Where two curves diverge: the step from which their difference exceeds the noise of both.

1. The points are those at common steps; y = ln x where both curves are positive, otherwise x over their typical size.
2. Noise of each curve, at each point: the robust spread of its residuals about its running median, in the 65 points
   around; at least that of the differences of neighbours. The running median spans a sixth of the points, 33 to 513.
   Correlated residuals count less: n points count as n (1 - r) / (1 + r), with r the correlation of neighbours.
3. The difference is compared as medians of w points, w = 16, 64, 256 (fewer where there are fewer points). It
   exceeds the noise where it is larger than 4 standard errors and than 2 %, with the same sign, in three
   successive medians that share no point. In the earliest such span, the divergence point is the most likely point
   of a jump from zero to the second median.

A value that is finite in only one curve is a divergence at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter

from stabwatch.alerts.statistics import robust_spread

Array = NDArray[np.float64]
Steps = NDArray[np.int64]

LEAST = 12
"""Fewest common points for a comparison."""
ERRORS = 4.0
FLOOR = 0.02
"""Smallest relative difference that counts: see `stabwatch.alerts.loss_feature`."""
IN_A_ROW = 3
WINDOWS = (16, 64, 256)
SMOOTH = (33, 513)
AROUND = 65
SAME = 1e-6
"""Relative difference that float32 rounding can cause."""


@dataclass(frozen=True)
class DivergencePoint:
    """A curve compared with its reference.

    step: first step of the divergence; None without one. before: the common step before it.
    until: last step of the divergence; None if it lasts to the end, or without one.
    differ: first step of any difference beyond rounding; None if the curves are equal.
    gap: ratio of the curve to its reference where they diverge; end: at the end. If `relative` is false (a curve that
    is not positive), both are the difference over the typical size. noise: spread of the difference of two points, in
    the same unit. points: common points. resolution: steps between them.
    """

    step: int | None
    before: int | None
    until: int | None
    differ: int | None
    gap: float
    end: float
    noise: float
    points: int
    resolution: int
    relative: bool

    @property
    def strength(self) -> float:
        """The gap at the divergence in units of the noise, which counts as at least 2 %."""
        gap = abs(float(np.log(self.gap))) if self.relative else abs(self.gap)
        return gap / max(self.noise, FLOOR) if np.isfinite(gap) else float("inf")


def divergence_point(reference: tuple[Steps, Array], other: tuple[Steps, Array]) -> DivergencePoint | None:
    """Compare `other` with `reference`, each (steps, values); None if they have too few common steps."""
    steps, a, b = _common(reference, other)
    both = np.isfinite(a) & np.isfinite(b)
    broken = np.isfinite(a) != np.isfinite(b)
    if both.sum() < LEAST:
        return None
    relative = bool((a[both] > 0).all() and (b[both] > 0).all())
    sizes = np.abs(np.concatenate([a[both], b[both]]))
    size = float(np.median(sizes)) or float(sizes.max()) or 1.0
    y = [np.log(x[both]) if relative else x[both] / size for x in (a, b)]
    at = steps[both]
    difference = y[1] - y[0]
    error = np.hypot(*(_error(curve) for curve in y))
    shortest = int(np.clip(len(at) // LEAST, 2, WINDOWS[0]))
    first: int | None = None
    last: int | None = None
    for w in (shortest, *(w for w in WINDOWS if w > shortest and 5 * w <= len(at))):
        place = _apart(difference, error, w)
        if place is None:
            continue
        first, last = min(place[0], len(at) if first is None else first), max(place[1], last or 0)
    over = last is not None and last < len(at) - 1 and bool(both[-1])
    candidates = [*([int(at[first])] if first is not None else []), *steps[broken][:1].tolist()]
    step = min(candidates, default=None)
    unequal = at[np.abs(difference) > SAME].tolist() + steps[broken][:1].tolist()
    show = np.exp if relative else np.asarray
    from_here = difference[at >= step][:shortest] if step is not None else difference[:0]
    return DivergencePoint(
        step=step,
        before=max((s for s in steps.tolist() if s < step), default=None) if step is not None else None,
        until=int(at[last]) if over and last is not None else None,
        differ=min(unequal, default=None),
        gap=float(show(np.median(from_here))) if len(from_here) else float("nan"),
        end=float(show(np.median(difference[-shortest:]))),
        noise=float(np.hypot(*(robust_spread(np.diff(curve)) / np.sqrt(2) for curve in y))),
        points=len(at),
        resolution=int(np.median(np.diff(at))),
        relative=relative,
    )


def _common(one: tuple[Steps, Array], other: tuple[Steps, Array]) -> tuple[Steps, Array, Array]:
    """Values at common steps; for a repeated step, its last value."""
    (s, a), (t, b) = _last(*one), _last(*other)
    steps, i, j = np.intersect1d(s, t, assume_unique=True, return_indices=True)
    return steps, a[i], b[j]


def _last(steps: Steps, values: Array) -> tuple[Steps, Array]:
    unique, reverse = np.unique(steps[::-1], return_index=True)
    return unique, values[::-1][reverse]


def _error(y: Array) -> Array:
    """Noise of one point of a curve, at each point. The median of n points has 1 / sqrt(n) of it."""
    n = len(y)
    rest = y - median_filter(y, min(int(np.clip(n // 6, *SMOOTH)) | 1, n), mode="nearest")
    local, rough = (
        1.4826 * median_filter(np.abs(x), min(AROUND, n), mode="nearest") for x in (rest, np.diff(y, prepend=y[0]))
    )
    kept = np.clip(rest, -3 * local, 3 * local)
    power = float((kept * kept).sum())
    correlation = float(np.clip((kept[1:] * kept[:-1]).sum() / power, 0.0, 0.98)) if power > 0 else 0.0
    return 1.2533 * np.maximum(local, rough / np.sqrt(2)) * np.sqrt((1 + correlation) / (1 - correlation))


def _apart(difference: Array, error: Array, window: int) -> tuple[int, int] | None:
    """First and last index at which the difference exceeds its error, in successive medians of `window` points."""
    stride = max(1, window // 8)
    seen = np.median(np.lib.stride_tricks.sliding_window_view(difference, window)[::stride], axis=-1)
    at = stride * np.arange(len(seen))
    limit = np.maximum(ERRORS * error[at] / np.sqrt(window), FLOOR)
    apart = np.where(np.abs(seen) > limit, np.sign(seen), 0.0)
    held = apart != 0
    for k in range(1, IN_A_ROW):
        held &= apart[np.minimum(np.arange(len(seen)) + k * window // stride, len(seen) - 1)] == apart
    if not held.any():
        return None
    found = int(np.argmax(held))
    start, whole = int(at[found]), abs(float(seen[min(found + window // stride, len(seen) - 1)]))
    jump = np.cumsum(apart[found] * difference[start : start + window] - whole / 2)
    first = start + (int(np.argmin(jump)) + 1 if jump.min() < 0 else 0)
    last = int(at[np.flatnonzero(held)[-1]]) + IN_A_ROW * window
    return first, len(difference) - 1 if last + window > len(difference) else last
