"""The last losses against the best ones, while the learning rate rises."""

from __future__ import annotations

import math
from collections import deque
from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stabwatch.alerts.features import DerivedSignal
from stabwatch.alerts.statistics import Array, exceeds

BEST_WINDOW = 32


class WarmUpRise:
    """The last 32 losses against the best 32 consecutive ones, and the rise of the learning rate since those.

    exceedance: share of pairs in which one of the last losses exceeds one of the best; see `exceeds`.
    rise: the learning rate over its largest value up to the end of the best window.
    score: (2 exceedance - 1) log2(rise), a rank correlation times doublings of the rate. A much worse loss counts
        after a small rise, and a slightly worse loss after the rate has doubled.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "loss_best_exceedance_ratio",
            f"Share of pairs in which one of the last {BEST_WINDOW} losses exceeds one of the best {BEST_WINDOW} "
            "in a row.",
            "ratio",
            "run",
        ),
        DerivedSignal(
            "learning_rate_rise_ratio", "learning_rate over its largest value until the loss was best.", "ratio", "run"
        ),
        DerivedSignal(
            "warm_up_loss_rise_score",
            "Rank correlation of being late with being worse than the best losses, times the doublings of the "
            "learning rate since those.",
            scope="run",
        ),
    )

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=BEST_WINDOW)
        self._best: Array = np.empty(0)
        self._best_mean = math.inf
        self._largest = self._until_best = math.nan

    def numbers(self, loss: float, rate: float) -> dict[str, float]:
        """The gauges after one more point; NaN for fewer than 32 points."""
        self._last.append(loss)
        self._largest = float(np.fmax(self._largest, rate))
        exceedance = rise = score = math.nan
        if len(self._last) == BEST_WINDOW:
            now = np.array(self._last)
            mean = float(now.mean())  # not the median, which half of the window could exceed
            if mean <= self._best_mean:
                self._best_mean, self._best, self._until_best = mean, now, self._largest
            exceedance = exceeds(now, self._best)
            rise = rate / self._until_best if self._until_best > 0 else math.nan
            score = (2 * exceedance - 1) * math.log2(rise) if rise > 0 else math.nan
        return {gauge.name: n for gauge, n in zip(self.gauges, (exceedance, rise, score), strict=True)}

    def numbers_many(self, losses: Array, rates: Array) -> dict[str, Array]:
        """The same after each of several points, (n,), when there are 32 already."""
        past = np.concatenate([np.array(self._last), losses])
        windows = np.ascontiguousarray(sliding_window_view(past, BEST_WINDOW)[1:])
        largest = np.fmax.accumulate(np.append(self._largest, rates))[1:]
        means = windows.mean(axis=1)
        least = np.minimum.accumulate(np.append(self._best_mean, means))
        better = np.flatnonzero(means <= least[:-1])
        exceedance = np.full(len(losses), 0.5)  # of a window with itself
        until = np.append(self._until_best, largest[better])[np.searchsorted(better, np.arange(len(losses)), "right")]
        best = self._best
        for start, stop in pairwise([-1, *better.tolist(), len(losses)]):
            best = windows[start] if start >= 0 else best
            exceedance[start + 1 : stop] = _with_one(past[start + 2 : stop + BEST_WINDOW], best)
        self._best, self._best_mean, self._until_best = best.copy(), float(least[-1]), float(until[-1])
        self._last.extend(losses[-BEST_WINDOW:].tolist())
        self._largest = float(largest[-1])
        with np.errstate(invalid="ignore", divide="ignore"):
            rises = np.where(until > 0, rates / until, np.nan)
        doublings = np.array([math.log2(rise) if rise > 0 else math.nan for rise in rises.tolist()])
        numbers = (exceedance, rises, (2 * exceedance - 1) * doublings)
        return {gauge.name: n for gauge, n in zip(self.gauges, numbers, strict=True)}


def _with_one(values: Array, other: Array) -> Array:
    """`exceeds` of each window of values, as long as the other one, with that one."""
    ordered = np.sort(other)
    below = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    twice = np.cumsum(np.append(0, below))
    return np.asarray((twice[len(other) :] - twice[: -len(other)]) / 2 / len(other) ** 2)
