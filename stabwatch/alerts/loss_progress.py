"""How much of what a loss has gained it has lost again."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stabwatch.alerts.features import WINDOW
from stabwatch.alerts.statistics import Array, median, middle, robust_spread, row_spreads

SMOOTH = 16
"""Points of the median that smooths the loss."""
NOISE = 6.0
"""Progress below six times the noise does not count: over 1e5 points, the 16-point median of noise spans 2.5 times."""


class Progress:
    """The share of a loss's progress that has regressed: (m - best) / max(first - best, 6 noise, floor).

    m: median of the last 16 points. first: the first such median. best: the smallest so far. noise: robust spread of
    the differences between neighbours, so that a trend does not count, over the 64 points before the best.
    """

    def __init__(self, floor: Callable[[Array | np.float64], Array | np.float64]) -> None:
        self._floor = floor
        self.first = self._noise = math.nan
        self.best = math.inf

    def regression(self, past: Array) -> float:
        """The share from the values so far, the newest last; NaN for fewer than 16."""
        if len(past) < SMOOTH:
            return math.nan
        now = median(past[-SMOOTH:])
        if math.isnan(self.first):
            self.first = now
        if now < self.best:
            self.best, self._noise = now, robust_spread(np.diff(past)) / math.sqrt(2)
        least = float(self._floor(np.float64(self.best)))
        return (now - self.best) / max(self.first - self.best, NOISE * self._noise, least, 1e-12)

    def regressions(self, past: Array, n: int) -> tuple[Array, Array]:
        """The share and the best at each of the last n values, (n,). At least 64 values come before those."""
        now = middle(np.sort(sliding_window_view(past[-n - SMOOTH + 1 :], SMOOTH), axis=1))
        best = np.minimum.accumulate(np.append(self.best, now))
        better = np.flatnonzero(best[1:] < best[:-1])
        steps = sliding_window_view(np.diff(past[-n - WINDOW :]), WINDOW)
        noise = np.append(self._noise, row_spreads(steps[better]) / math.sqrt(2))
        noise = noise[np.searchsorted(better, np.arange(n), side="right")]
        self.best, self._noise, best = float(best[-1]), float(noise[-1]), best[1:]
        made = np.maximum(np.maximum(self.first - best, NOISE * noise), np.maximum(self._floor(best), 1e-12))
        return (now - best) / made, best
