"""Do the numbers of a regression come in their order? From the mean of the targets of each batch, and their spread."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from stabwatch.alerts.objectives import MovingTargets, OwnData

ORDERED = 0.97
"""Share of the variance that lies between batches: less is that of batches of one sequence, or of one task. Of sorted
data of six batches it is 35 / 36."""
LOOKS = 8
JUMPS = 6.0
"""Variance of the second differences of independent numbers over their own."""


class NumberOrder:
    """How much of the variance of the targets lies between the batches of the last looks.

    What rises or falls steadily is no order: values that a policy learns do. Nothing is said where the model makes its
    own data or plays against another one, nor where the targets grow.
    """

    def __init__(self) -> None:
        self._past: deque[tuple[float, float]] = deque(maxlen=LOOKS)
        self._targets = MovingTargets()
        self._own = OwnData()

    def record(self, acted: float, opposed: float, loss: float, compared: float, size: float) -> None:
        """What a record shows beside the targets; NaN where it is not known."""
        self._own.record(acted, opposed)
        self._targets.observe(loss, compared, size)

    def share(self, mean: float, deviation: float) -> float:
        """A look at the targets of a batch: 0 where the share is at most `ORDERED`; NaN where nothing can be said."""
        self._past.append((mean, deviation))
        moves = self._targets.grown or self._own.made
        if len(self._past) < LOOKS or moves:
            return math.nan
        means, deviations = np.array(self._past).T
        between = float(np.square(np.diff(means, 2)).mean()) / JUMPS
        within = float(np.square(deviations).mean())
        found = between / (between + within) if between + within > 0 else 0.0
        return found if found > ORDERED else 0.0
