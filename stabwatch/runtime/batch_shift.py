"""How far the batches of the last steps are from those before: do the data change?"""

from __future__ import annotations

import math
from collections import deque

import numpy as np
from numpy.typing import NDArray

LAST, SETTLED, BEFORE, FEWEST = 3, 8, 64, 24
"""Batches whose mean is compared, after a change more of them; with how many before, and with how few at least."""
CHANGED, BACK = 3.0, 2.0
"""Squared distances over the expected one: from there on the data have changed, and below they have not."""
KEPT = 48
"""Steps for which the batches before a change stay what is compared with."""

Vector = NDArray[np.float64]


class BatchShift:
    """The squared distance of the mean of the last three batches, or of eight after a change, from that of 64 before.

    Of each number in units of its variance over those batches, and the mean over all numbers: about 1 while nothing
    changes. After a change the batches before it stay the reference for 48 steps, or until the data are like them
    again; then a new reference is gathered.
    """

    def __init__(self) -> None:
        self._last: deque[Vector] = deque(maxlen=SETTLED)
        self._before: deque[Vector] = deque()
        self._sum = self._squares = np.zeros(0)
        self._since = 0

    def observe(self, batch: NDArray[np.float32] | None) -> float:
        """The distance with the batch of a step; NaN without one, or while too few are known."""
        if batch is None or not np.isfinite(batch).all():
            return math.nan
        if len(self._last) >= LAST and not self._since:
            self._remember(self._last[-LAST])
        self._last.append(batch.astype(np.float64))
        if len(self._before) < FEWEST or len(self._last) < LAST:
            return math.nan
        distance = self._distance()
        if self._since:
            self._since += 1
            if distance < BACK:
                self._since = 0
            elif self._since > KEPT:
                self._begin_anew()
        elif distance > CHANGED:
            self._since = 1
        return distance

    def _remember(self, batch: Vector) -> None:
        if not len(self._before):
            self._sum, self._squares = np.zeros_like(batch), np.zeros_like(batch)
        self._before.append(batch)
        self._sum = self._sum + batch
        self._squares = self._squares + batch * batch
        if len(self._before) > BEFORE:
            oldest = self._before.popleft()
            self._sum = self._sum - oldest
            self._squares = self._squares - oldest * oldest

    def _distance(self) -> float:
        n = len(self._before)
        mean = self._sum / n
        variance = np.maximum(self._squares / n - mean * mean, 0.0) * n / (n - 1) + 1e-6 * mean * mean + 1e-12
        last = list(self._last)[-min(LAST + self._since, SETTLED) :]
        away = sum(last) / len(last) - mean
        return float((away * away / variance).mean() / (1 / len(last) + 1 / n))

    def _begin_anew(self) -> None:
        self._before.clear()
        self._since = 0
