"""Derived signals of the run's own scalars: the loss and the gradient norm, each against its own past."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from stabwatch.alerts.climb import Climb
from stabwatch.alerts.points import Array, Columns, Derived, RunFamily, exceeds, middle, robust_spread
from stabwatch.runlog import SeriesKey

WINDOW = 64
SHIFTED = 8
"""Values whose median is a level."""
LEAST_PAST = 8
TINY = 1e-30
LEAST_SPREAD = 0.02
"""Scatter below 2% counts as 2%: a deterministic series has no spread of its own."""
SMOOTH = 16
"""Points of the median that stands for the level of the loss."""
NOISE = 6.0
"""Progress below six times the noise is none: over 1e5 points the 16-point median of noise spans some 2.5 of them."""


class ScalarFamily(RunFamily):
    """A run-level signal against the 64 points before it.

    robust z: (y - median) / (1.4826 MAD) with y = ln x; y = x while a point of the window is not positive.
    The logarithm keeps heavy-tailed losses near zero from looking like spikes.
    to median: 1 + (x - median) / |median|, so x / median wherever the median is positive.
    """

    def __init__(self, name: str, *signals: str) -> None:
        self.gauges = (
            Derived(f"{name}_robust_z", f"Robust z-score of ln({name}) against its last {WINDOW} values.", level="run"),
            Derived(f"{name}_to_median_ratio", f"{name} over the median of its last {WINDOW} values.", "ratio", "run"),
        )
        super().__init__(name, *signals)

    def _begin(self) -> None:
        self._past: deque[float] = deque(maxlen=WINDOW)
        self._used = ""

    def _observe(self, values: Array) -> dict[str, float] | None:
        x = self._pick(values)
        if not math.isfinite(x):
            return None
        numbers = self._numbers(x)
        self._past.append(x)
        return numbers | {self.name: x}

    def _pick(self, values: Array) -> float:
        """The first of the signals that is there; then always that one: norms before and after clipping differ."""
        for signal in self._columns.signals:
            found = self._one(signal, values)
            if not math.isnan(found) and self._used in ("", signal):
                self._used = signal
                return found
        return math.nan

    def _numbers(self, x: float) -> dict[str, float]:
        z, ratio = against(np.array(self._past), x)
        return {self.gauges[0].name: z, self.gauges[1].name: ratio}


def against(past: Array, x: float) -> tuple[float, float]:
    """Robust z and ratio to the median of a value against its past; NaN below eight points."""
    if len(past) < LEAST_PAST:
        return math.nan, math.nan
    centre = middle(past)
    size, ratio = max(abs(centre), TINY), _ratio(x, centre)
    if x > 0 and past.min() > 0:
        shown = np.log(past)
        return (math.log(x) - middle(shown)) / max(robust_spread(shown), LEAST_SPREAD), ratio
    return (x - centre) / max(robust_spread(past), LEAST_SPREAD * size), ratio


def _ratio(x: float, centre: float) -> float:
    """x over centre where that is positive."""
    return 1 + (x - centre) / max(abs(centre), TINY)


def shifted(past: Array, now: Array) -> tuple[float, float]:
    """Share of pairs in which a value of now exceeds one of the past, and the ratio of their medians; NaN below eight
    points."""
    if len(past) < LEAST_PAST:
        return math.nan, math.nan
    return exceeds(now, past), _ratio(middle(now), middle(past))


class GradientFamily(ScalarFamily):
    """The gradient norm: before clipping where `clip_grad_norm_` is called.

    The norm at the optimizer step is that of the finite elements; beside non-finite ones it says little, and such a
    point is left out.
    """

    def __init__(self) -> None:
        super().__init__("gradient_norm", "gradient_norm_before_clip", "gradient_norm")
        self._bad = Columns("gradient_nonfinite_total")

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Family."""
        super().bind(keys)
        self._bad.bind(keys)

    def _pick(self, values: Array) -> float:
        found = super()._pick(values)
        broken = self._used == "gradient_norm" and (self._bad.of("gradient_nonfinite_total", values) > 0).any()
        return math.nan if broken else found


class Progress:
    """How much of a loss's progress is lost again: (m - best) / max(first - best, 6 noise, floor).

    m: median of the last 16 points. first: the first such median. best: the least so far. noise: robust spread of the
    differences of neighbours (so a trend does not count) over the 64 points before the best.
    """

    def __init__(self, floor: Callable[[float], float]) -> None:
        self._floor = floor
        self.first = self._noise = math.nan
        self.best = math.inf

    def lost(self, past: Array) -> float:
        """The share, from the values so far, the newest last; NaN below 16."""
        if len(past) < SMOOTH:
            return math.nan
        now = middle(past[-SMOOTH:])
        if math.isnan(self.first):
            self.first = now
        if now < self.best:
            self.best, self._noise = now, robust_spread(np.diff(past)) / math.sqrt(2)
        return (now - self.best) / max(self.first - self.best, NOISE * self._noise, self._floor(self.best), 1e-12)


class LossFamily(ScalarFamily):
    """The loss, and how much of its progress is lost again.

    0.5 means that half of what was learned is gone, or, where little was learned, that the loss is one and a half
    times its best. While the loss is positive it must be so of its logarithm too: heavy tails reach far up, but not
    on that scale. For a loss that has been negative, zero is no floor and its size tells nothing (a policy gradient's
    comes back to zero when all is learned): half is gone, at the least, when it is positive again.
    """

    _SHIFT = (
        Derived("loss_shift_share", f"Share of pairs in which one of the last {SHIFTED} losses exceeds one of the "
                f"{WINDOW} before them.", "ratio", "run"),
        Derived("loss_shift_ratio", f"Median of the last {SHIFTED} values of loss over that of the {WINDOW} before "
                "them.", "ratio", "run"),
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__("loss", "loss")
        self.gauges = (
            *self.gauges,
            Derived("loss_lost_ratio", "Share of the progress of the loss that has been lost again.", "ratio", "run"),
            *self._SHIFT,
            *Climb.gauges,
        )
        self._rates = Columns("learning_rate")
        self._rate = math.nan

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Family."""
        super().bind(keys)
        self._rates.bind(keys)

    def _observe(self, values: Array) -> dict[str, float] | None:
        rates = self._rates.of("learning_rate", values)
        self._rate = float(rates[0]) if len(rates) else math.nan
        return super()._observe(values)

    def _begin(self) -> None:
        super()._begin()
        self._plain = Progress(lambda best: abs(best) if best > 0 else 2 * abs(best))
        self._log: Progress | None = Progress(lambda best: 2 * math.log(1.5))
        self._climb = Climb()
        self._long: deque[float] = deque(maxlen=WINDOW + SHIFTED)

    def _numbers(self, x: float) -> dict[str, float]:
        past = np.array([*self._past, x])
        lost = self._plain.lost(past)
        if x <= 0:
            self._log = None
        if self._log is not None:
            lost = min(lost, self._log.lost(np.log(past)))
        self._long.append(x)
        long = np.array(self._long)
        shift = shifted(long[:-SHIFTED], long[-SHIFTED:])
        return (
            super()._numbers(x)
            | {gauge.name: n for gauge, n in zip(self._SHIFT, shift, strict=True)}
            | self._climb.numbers(x, self._rate)
            | {
                "loss_lost_ratio": lost,
                "loss_first": self._plain.first,
                "loss_best": self._plain.best,
            }
        )
