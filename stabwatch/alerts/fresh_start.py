"""Training that starts over in the middle of a run: the optimizer has no state, and the loss is back where it began."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

import numpy as np

from stabwatch.alerts.statistics import median

FIRST, RECENT = 8, 16
"""Losses whose median is where the run began, and where it has come to."""
BACK = 0.5
"""Share of the progress above which a loss is back: weights that go on lose none of it in the step of the reset."""


class Course:
    """Where the losses of a run began, and where they have come to."""

    def __init__(self) -> None:
        self._first: list[float] = []
        self._recent: deque[float] = deque(maxlen=RECENT)

    def observe(self, losses: Iterable[float]) -> None:
        """Losses of records, in order; NaN where there is none."""
        for loss in losses:
            if math.isfinite(loss):
                if len(self._first) < FIRST:
                    self._first.append(loss)
                self._recent.append(loss)

    def lost(self, loss: float) -> float:
        """Share of the progress so far by which a loss is above the last ones, 1 at most; 0 where that is not known."""
        if len(self._recent) < RECENT or not math.isfinite(loss):
            return 0.0
        level = median(np.array(self._recent))
        made = median(np.array(self._first)) - level
        return min((loss - level) / made, 1.0) if made > 0 else 0.0
