"""Does the loss get worse while the learning rate climbs?"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from stabwatch.alerts.points import Array, Derived, exceeds

STRETCH = 32


class Climb:
    """The last 32 losses against the 32 that were best, and the learning rate now against what it was until then.

    worse share: of all pairs of one of the last and one of the best, those in which the last is higher; see `exceeds`.
    climb: the learning rate over its largest value up to the end of the best stretch; above 1 only while it is higher
    than it ever was when the loss was best.
    score: (2 worse share - 1) log2(climb), a rank correlation times doublings. A loss that has become much worse counts
    while the rate has hardly climbed, and one that has become somewhat worse while the rate has doubled.
    """

    gauges: tuple[Derived, ...] = (
        Derived("loss_worse_share",
                f"Share of pairs in which one of the last {STRETCH} losses exceeds one of the best {STRETCH}.", "ratio",
                "run"),
        Derived("learning_rate_climb_ratio", "learning_rate over its largest value until the loss was best.", "ratio",
                "run"),
        Derived("loss_climb_score", "Rank correlation of the last losses with being worse than the best, times the "
                "doublings of the learning rate since those.", level="run"),
    )  # fmt: skip

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=STRETCH)
        self._best: Array = np.empty(0)
        self._level = math.inf
        self._largest = self._until_best = math.nan

    def numbers(self, loss: float, rate: float) -> dict[str, float]:
        """The gauges after one more point; NaN before there are two stretches' worth of what they compare."""
        self._last.append(loss)
        self._largest = float(np.fmax(self._largest, rate))
        share = climb = score = math.nan
        if len(self._last) == STRETCH:
            now = np.array(self._last)
            level = float(now.mean())  # not the median: half of a best stretch could be bad
            if level <= self._level:
                self._level, self._best, self._until_best = level, now, self._largest
            share = exceeds(now, self._best)
            climb = rate / self._until_best if self._until_best > 0 else math.nan
            score = (2 * share - 1) * math.log2(climb) if climb > 0 else math.nan
        return {gauge.name: n for gauge, n in zip(self.gauges, (share, climb, score), strict=True)}
