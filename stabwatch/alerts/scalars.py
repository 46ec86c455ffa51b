"""Derived signals of the run's own scalars: the loss and the gradient norm, each against its own past."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

from stabwatch.alerts.points import Array, Columns, Derived, middle, robust_spread
from stabwatch.runlog import SeriesKey

WINDOW = 64
LEAST_PAST = 8
LEAST_SPREAD = 0.02
"""Scatter below 2% counts as 2%: a deterministic series has no spread of its own."""
SMOOTH = 16
"""Points of the median that stands for the level of the loss."""
NOISE = 6.0
"""Progress below six times the noise is none: over 1e5 points a 16-point median of noise spans four of them."""


class ScalarFamily:
    """A run-level signal against the 64 points before it.

    robust z: (y - median) / (1.4826 MAD) with y = ln x; y = x while a point of the window is not positive.
    The logarithm keeps heavy-tailed losses near zero from looking like spikes.
    to median: 1 + (x - median) / |median|, so x / median wherever the median is positive.
    """

    def __init__(self, name: str, *signals: str) -> None:
        self.name = name
        self.signal = signals[0]
        self._signals = signals
        self._columns = Columns(*signals)
        self._past: deque[float] = deque(maxlen=WINDOW)
        self._points = 0
        self._used = ""
        self.gauges: tuple[Derived, ...] = (
            Derived(f"{name}_robust_z", f"Robust z-score of ln({name}) against its last {WINDOW} values.", level="run"),
            Derived(f"{name}_to_median_ratio", f"{name} over the median of its last {WINDOW} values.", "ratio", "run"),
        )

    @property
    def layers(self) -> list[str]:
        """The run itself."""
        return [""]

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Family."""
        self._columns.bind(keys)

    def restart(self) -> None:
        """See Family."""
        self._past.clear()
        self._points, self._used = 0, ""

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """See Family."""
        x = self._pick(values)
        if not math.isfinite(x):
            return None
        numbers = self._numbers(x)
        self._past.append(x)
        self._points += 1
        return {name: np.array([n]) for name, n in (numbers | {self.name: x, "points": self._points}).items()}

    def _pick(self, values: Array) -> float:
        """The first of the signals that is there; then always that one: norms before and after clipping differ."""
        for signal in self._signals:
            found = self._columns.of(signal, values)
            if len(found) and not math.isnan(found[0]) and self._used in ("", signal):
                self._used = signal
                return float(found[0])
        return math.nan

    def _numbers(self, x: float) -> dict[str, float]:
        z, ratio = against(np.array(self._past), x)
        return {self.gauges[0].name: z, self.gauges[1].name: ratio}


def against(past: Array, x: float) -> tuple[float, float]:
    """Robust z and ratio to the median of a value against its past; NaN below eight points."""
    if len(past) < LEAST_PAST:
        return math.nan, math.nan
    centre = middle(past)
    size = max(abs(centre), 1e-30)
    ratio = 1 + (x - centre) / size
    if x > 0 and past.min() > 0:
        shown = np.log(past)
        return (math.log(x) - middle(shown)) / max(robust_spread(shown), LEAST_SPREAD), ratio
    return (x - centre) / max(robust_spread(past), LEAST_SPREAD * size), ratio


class LossFamily(ScalarFamily):
    """The loss, and how much of its progress is lost again.

    lost: (m - best) / max(first - best, 6 noise, |best|), with m the median of the last 16 points, first the first
    such median, best the least so far, noise the robust spread of the window that set it. So 0.5 means that half of
    what was learned is gone, or, where little was learned, that the loss is one and a half times its best.
    """

    def __init__(self) -> None:
        super().__init__("loss", "loss")
        self.gauges = (
            *self.gauges,
            Derived("loss_lost_ratio", "Share of the progress of the loss that has been lost again.", "ratio", "run"),
        )
        self._recent: deque[float] = deque(maxlen=SMOOTH)
        self._first = self._noise = math.nan
        self._best = math.inf

    def restart(self) -> None:
        """See Family."""
        super().restart()
        self._recent.clear()
        self._first, self._noise, self._best = math.nan, math.nan, math.inf

    def _numbers(self, x: float) -> dict[str, float]:
        self._recent.append(x)
        return super()._numbers(x) | {
            "loss_lost_ratio": self._lost(),
            "loss_first": self._first,
            "loss_best": self._best,
        }

    def _lost(self) -> float:
        if len(self._recent) < SMOOTH:
            return math.nan
        recent = np.array(self._recent)
        now = middle(recent)
        if math.isnan(self._first):
            self._first = now
        if now < self._best:
            self._best, self._noise = now, robust_spread(recent)
        return (now - self._best) / max(self._first - self._best, NOISE * self._noise, abs(self._best), 1e-12)
