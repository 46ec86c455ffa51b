"""Derived signals of the sampled and deep tiers: updates, Adam's moments, weights, tokens, units, experts, samples."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

from stabwatch.alerts.points import Array, Columns, Derived, RunFamily, middle, middle_of_each
from stabwatch.runlog import SeriesKey


class PlainFamily:
    """A signal as it is, and how far it has risen above its first value: a trained model may come with any."""

    def __init__(self, signal: str, rise: Derived | None = None) -> None:
        self.name = self.signal = signal
        self.gauges: tuple[Derived, ...] = (rise,) if rise else ()
        self._columns = Columns(signal)
        self._first = np.empty(0)
        self._points = np.empty(0)

    @property
    def layers(self) -> list[str]:
        """Layers in forward order."""
        return self._columns.layers

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Family."""
        self._columns.bind(keys)
        more = len(self.layers) - len(self._first)
        self._first = np.append(self._first, np.full(more, np.nan))
        self._points = np.append(self._points, np.zeros(more))

    def restart(self) -> None:
        """See Family."""
        self._first[:], self._points[:] = np.nan, 0

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """See Family."""
        now = self._columns.of(self.signal, values)
        measured = ~np.isnan(now)
        if not measured.any():
            return None
        self._points += measured
        self._first = np.where(np.isnan(self._first), now, self._first)
        return {self.signal: now, "points": self._points.copy()} | {g.name: now - self._first for g in self.gauges}


class MedianFamily(RunFamily):
    """The median over layers of a signal, each layer with its last value: the deep tier takes turns.

    to_peak: over its largest value so far, so that a learning rate that comes back to where it was is no jump.
    rise: less the median of the layers' first values. jump: less the median at the point before.
    """

    def __init__(
        self,
        name: str,
        signal: str,
        median: Derived,
        to_peak: Derived | None = None,
        rise: Derived | None = None,
        jump: Derived | None = None,
    ) -> None:
        self._median, self._to_peak, self._rise, self._jump = median, to_peak, rise, jump
        self.gauges = tuple(gauge for gauge in (median, to_peak, rise, jump) if gauge)
        self._last = self._first = np.empty(0)
        super().__init__(name, signal)

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Family."""
        super().bind(keys)
        more = np.full(len(self._columns.layers) - len(self._last), np.nan)
        self._last, self._first = np.append(self._last, more), np.append(self._first, more)

    def _begin(self) -> None:
        self._last[:], self._first[:] = np.nan, np.nan
        self._peak = self._before = math.nan

    def _observe(self, values: Array) -> dict[str, float] | None:
        now = self._columns.of(self.signal, values)
        if np.isnan(now).all():
            return None
        self._last = np.where(np.isnan(now), self._last, now)
        self._first = np.where(np.isnan(self._first), now, self._first)
        value = middle(self._last[np.isfinite(self._last)])
        numbers = {self._median.name: value}
        if self._to_peak:
            numbers[self._to_peak.name] = value / self._peak if self._peak > 0 else math.nan
        if self._rise:
            numbers[self._rise.name] = value - middle(self._first[np.isfinite(self._first)])
        if self._jump:
            numbers[self._jump.name] = value - self._before
        self._before = value
        self._peak = float(np.fmax(self._peak, value))
        return numbers


class WeightFamily:
    """By how much a layer's weights changed beyond what the optimizer's own steps can have done.

    The norm after a step lies within (1 +- update-to-weight ratio) of the norm before it; between two measured points,
    every step is taken to be as large as the larger of the two. What is left over was changed by something else: a bit
    that turned over, a checkpoint that was loaded, an average that was swapped in.
    """

    name = "weight"
    signal = "weight_rms"
    gauges: tuple[Derived, ...] = (
        Derived(
            "weight_unexplained_ratio", "Change of a layer's weight norm beyond what its updates explain.", "ratio"
        ),
    )

    def __init__(self) -> None:
        self._columns = Columns("weight_rms", "update_to_weight_ratio")
        self._rms = self._ratio = self._steps = self._points = np.empty(0)

    @property
    def layers(self) -> list[str]:
        """Layers in forward order."""
        return self._columns.layers

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Family."""
        self._columns.bind(keys)
        more = len(self.layers) - len(self._rms)
        self._rms, self._ratio, self._steps = (
            np.append(kept, np.full(more, np.nan)) for kept in (self._rms, self._ratio, self._steps)
        )
        self._points = np.append(self._points, np.zeros(more))

    def restart(self) -> None:
        """See Family."""
        for kept in (self._rms, self._ratio, self._steps):
            kept[:] = np.nan

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """See Family."""
        rms, ratio = (self._columns.of(signal, values) for signal in self._columns.signals)
        measured = ~np.isnan(rms)
        if not measured.any():
            return None
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            most = np.where(np.isnan(self._ratio), np.nan, np.fmax(self._ratio, ratio))
            allowed = np.expm1((step - self._steps) * np.log1p(most))
            beyond = np.maximum(np.fmax(rms / self._rms, self._rms / rms) - 1 - allowed, 0.0)
        beyond[~(np.isfinite(self._rms) & (self._rms > 0))] = np.nan
        self._points += measured
        self._rms, self._ratio = np.where(measured, rms, self._rms), np.where(measured, ratio, self._ratio)
        self._steps = np.where(measured, step, self._steps)
        return {self.gauges[0].name: beyond, "weight_rms": rms, "points": self._points.copy()}


class FadeFamily(RunFamily):
    """How far the gradients of the layers have faded, beside what became of the loss.

    fade: median over layers of the gradient RMS over its largest level of the run, as the median of the last 16 points.
    level: median of 5 points, so that one explosion at the start is not what all that follows is held against.
    left, stall: the loss over its first value and over that of 32 points before, all as medians of 16 points; a loss
    that is not positive has none.
    """

    gauges: tuple[Derived, ...] = (
        Derived(
            "gradient_fade_ratio",
            "Median over layers of the gradient RMS over its largest median of 5 values so far.",
            "ratio",
            "run",
        ),
        Derived("loss_left_ratio", "The loss over its first value, medians of 16 values.", "ratio", "run"),
        Derived(
            "loss_stall_ratio", "The loss over what it was 32 values before, medians of 16 values.", "ratio", "run"
        ),
    )
    _SMOOTH, _BEFORE, _LEVEL = 16, 32, 5

    def __init__(self) -> None:
        self._loss = Columns("loss")
        self._peak, self._recent = np.empty(0), np.empty((self._LEVEL, 0))
        super().__init__("gradient_fade", "gradient_rms")

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Family."""
        super().bind(keys)
        self._loss.bind(keys)
        more = len(self._columns.layers) - len(self._peak)
        self._peak = np.append(self._peak, np.full(more, np.nan))
        self._recent = np.pad(self._recent, ((0, 0), (0, more)), constant_values=np.nan)

    def _begin(self) -> None:
        self._peak[:] = np.nan
        self._recent = np.full((self._LEVEL, len(self._peak)), np.nan)
        self._fades: deque[float] = deque(maxlen=self._SMOOTH)
        self._losses: deque[float] = deque(maxlen=self._SMOOTH)
        self._levels: deque[float] = deque(maxlen=self._BEFORE)
        self._first = math.nan

    def _observe(self, values: Array) -> dict[str, float] | None:
        loss = self._loss.of("loss", values)
        if len(loss) and math.isfinite(loss[0]):
            self._losses.append(float(loss[0]))
        now = self._columns.of("gradient_rms", values)
        if np.isnan(now).all():
            return None
        now = np.where(np.isfinite(now), now, np.nan)
        self._recent[self._points % self._LEVEL] = now
        self._peak = np.fmax(self._peak, middle_of_each(self._recent))
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = now / self._peak
        self._fades.append(middle(ratio[np.isfinite(ratio)]))
        numbers = (middle(np.array(self._fades)), *self._of_loss())
        return {gauge.name: n for gauge, n in zip(self.gauges, numbers, strict=True)}

    def _of_loss(self) -> tuple[float, float]:
        """Left and stall."""
        if len(self._losses) < self._SMOOTH:
            return math.nan, math.nan
        now = middle(np.array(self._losses))
        if math.isnan(self._first):
            self._first = now
        before = self._levels[0] if len(self._levels) == self._BEFORE else math.nan
        self._levels.append(now)
        return tuple(now / past if past > 0 < now else math.nan for past in (self._first, before))  # type: ignore[return-value]
