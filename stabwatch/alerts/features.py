"""Building blocks of derived signals: signals as they are, against their past, over layers."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from stabwatch.alerts.blocks import Block, BlockGauges, OnDemand
from stabwatch.alerts.columns import LayerColumns
from stabwatch.alerts.statistics import (
    Array,
    Bools,
    Ints,
    after_each,
    against,
    against_many,
    carried,
    median,
    row_medians,
)
from stabwatch.runlog import SeriesKey


@dataclass(frozen=True)
class DerivedSignal:
    """Declaration of one derived signal: its metric name, help, unit and scope."""

    name: str
    help: str
    unit: str = "1"
    scope: str = "layer"

    @property
    def metric(self) -> str:
        """Name on /metrics."""
        return f"stabwatch_{self.name}"


class Feature(Protocol):
    """Computes derived signals from measured ones, along one axis of layers. `gauges` declares them."""

    name: str
    signal: str
    gauges: tuple[DerivedSignal, ...]

    @property
    def layers(self) -> list[str]:
        """The axis. Layers are only added, never removed."""

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """Bind to the series of a record layout. Layers seen before keep their state."""

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """Process one record. Returns numbers by name, each (layers,), NaN where not measured; None if none was.

        The result has every gauge, and `points`: the number of measured points of each layer.
        """

    def restart(self) -> None:
        """Clear the state and keep the layers: the run continues from an earlier step."""


class _ByColumns(Protocol):
    _columns: LayerColumns


def own_signals(feature: _ByColumns, values: Array) -> Bools:
    """The declaration `measures` of a feature for which a record without its signals changes nothing; see `blocks`."""
    return feature._columns.measured(values)


class RunFeature:
    """A feature with the run as its only row. Subclasses implement `_observe`."""

    gauges: tuple[DerivedSignal, ...] = ()

    def __init__(self, name: str, *signals: str) -> None:
        self.name, self.signal = name, signals[0]
        self._columns = LayerColumns(*signals)
        self._points = self._step = 0
        self._begin()

    @property
    def layers(self) -> list[str]:
        """The run itself."""
        return [""]

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Feature."""
        self._columns.bind(keys)

    def restart(self) -> None:
        """See Feature."""
        self._points = 0
        self._begin()

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """See Feature."""
        found = self.numbers(step, values)
        return None if found is None else {name: np.array([n]) for name, n in found.items()}

    def numbers(self, step: int, values: Array) -> dict[str, float] | None:
        """What `update` returns, as numbers of the one row."""
        self._step = step
        found = self._observe(values)
        if found is None:
            return None
        self._points += 1
        return {**found, "points": float(self._points)}

    def _many(self, rows: Ints, numbers: Mapping[str, Array | OnDemand]) -> Block:
        """The result of `observe_block` with the numbers of the measured rows, each (rows,)."""
        points = self._points + np.arange(1.0, len(rows) + 1)
        self._points += len(rows)
        columns = {
            name: column if isinstance(column, OnDemand) else column[:, None]
            for name, column in {**numbers, "points": points}.items()
        }
        return rows, BlockGauges(columns)

    def _begin(self) -> None:
        """Clear the state."""

    def _observe(self, values: Array) -> dict[str, float] | None:
        """Numbers of the record of `_step` by name, including every gauge; None when nothing was measured."""
        raise NotImplementedError

    def _one(self, signal: str, values: Array) -> float:
        """The value of a run-scope signal; NaN where there is none."""
        return self._columns.number(signal, values)

    def _column(self, signal: str, values: Array) -> Array:
        """The values of a run-scope signal, (n,); NaN where there are none."""
        return self._columns.of_run(signal, values)


WINDOW = 64


class ScalarFeature(RunFeature):
    """A run-scope signal against the 64 points before it.

    robust z: (y - median) / (1.4826 MAD) with y = ln x; y = x while a point of the window is not positive.
    With the logarithm, heavy-tailed losses near zero do not look like spikes.
    to median: 1 + (x - median) / |median|, which is x / median where the median is positive.
    """

    def __init__(self, name: str, *signals: str) -> None:
        self.gauges = (
            DerivedSignal(
                f"{name}_robust_z", f"Robust z-score of ln({name}) against its last {WINDOW} values.", scope="run"
            ),
            DerivedSignal(
                f"{name}_to_median_ratio", f"{name} over the median of its last {WINDOW} values.", "ratio", "run"
            ),
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
        """The first signal that is measured, and only that one from then on: norms before and after clipping differ."""
        for signal in self._columns.signals:
            found = self._one(signal, values)
            if not math.isnan(found) and self._used in ("", signal):
                self._used = signal
                return found
        return math.nan

    def _numbers(self, x: float) -> dict[str, float]:
        z, ratio = against(np.array(self._past), x)
        return {self.gauges[0].name: z, self.gauges[1].name: ratio}

    def _numbers_many(self, x: Array) -> dict[str, Array | OnDemand]:
        """The same for finite values in a row, (n,), when the window is full."""
        z, ratio = against_many(after_each(np.array(self._past), x)[:-1], x)
        self._past.extend(x[-WINDOW:].tolist())
        return {self.gauges[0].name: z, self.gauges[1].name: ratio}


class PlainFeature:
    """A signal, and optionally its rise above its first value: a pretrained model may start with any value."""

    def __init__(self, signal: str, rise: DerivedSignal | None = None) -> None:
        self.name = self.signal = signal
        self.gauges: tuple[DerivedSignal, ...] = (rise,) if rise else ()
        self._columns = LayerColumns(signal)
        self._first = np.empty(0)
        self._points = np.empty(0)

    @property
    def layers(self) -> list[str]:
        """Layers in forward order."""
        return self._columns.layers

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Feature."""
        self._columns.bind(keys)
        more = len(self.layers) - len(self._first)
        self._first = np.append(self._first, np.full(more, np.nan))
        self._points = np.append(self._points, np.zeros(more))

    def restart(self) -> None:
        """See Feature."""
        self._first[:], self._points[:] = np.nan, 0

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """See Feature."""
        now = self._columns.of(self.signal, values)
        measured = ~np.isnan(now)
        if not measured.any():
            return None
        self._points += measured
        self._first = np.where(np.isnan(self._first), now, self._first)
        return {self.signal: now, "points": self._points.copy()} | self._rises(now)

    measures = own_signals

    def observe_block(self, steps: Ints, values: Array) -> Block:
        """See `blocks`."""
        now = self._columns.of(self.signal, values)
        measured = ~np.isnan(now)
        points = self._points + np.cumsum(measured, axis=0)
        firsts = now[measured.argmax(axis=0), np.arange(now.shape[1])]
        self._points, self._first = points[-1].copy(), np.where(np.isnan(self._first), firsts, self._first)
        return np.arange(len(steps)), BlockGauges({self.signal: now, "points": points} | self._rises(now))

    def _rises(self, now: Array) -> dict[str, Array]:
        with np.errstate(invalid="ignore"):  # of infinities
            return {gauge.name: now - self._first for gauge in self.gauges}


class Duration:
    """For how many steps something has been so without a break, of a number of the run."""

    def __init__(self) -> None:
        self._since = math.nan

    def at(self, step: float, so: bool) -> float:
        """Steps at this one; 0 where it is not so."""
        if not so:
            self._since = math.nan
            return 0.0
        self._since = step if math.isnan(self._since) else self._since
        return step - self._since


class LastingFeature(PlainFeature):
    """A signal that is low in a healthy run, and for how many steps it has been above a limit."""

    def __init__(self, signal: str, above: float = 0.0) -> None:
        super().__init__(signal)
        self._above, self._since = above, np.empty(0)
        self._steps = f"{signal}_steps"
        self.gauges = (DerivedSignal(self._steps, f"Steps for which {signal} has been above {above:g}."),)

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Feature."""
        super().bind(keys)
        self._since = np.append(self._since, np.full(len(self.layers) - len(self._since), np.nan))

    def restart(self) -> None:
        """See Feature."""
        super().restart()
        self._since[:] = np.nan

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """See Feature."""
        numbers = super().update(step, values)
        if numbers is None:
            return None
        now = numbers[self.signal]
        begins = (now > self._above) & np.isnan(self._since)
        self._since = np.where(begins, step, np.where(now <= self._above, np.nan, self._since))
        lasted = np.where(np.isnan(self._since), 0.0, step - self._since)
        return numbers | {self._steps: np.where(np.isnan(now), np.nan, lasted)}

    measures = own_signals


class MedianFeature(RunFeature):
    """The median over layers of a signal. Each layer counts with its last measured value (deep tier: round-robin).

    to_peak: the median over its previous peak; a learning rate that returns to an earlier value is no jump.
    rise: the median minus that of the layers' first values. jump: the median minus that of the previous point.
    """

    def __init__(
        self,
        name: str,
        signal: str,
        gauge: DerivedSignal,
        to_peak: DerivedSignal | None = None,
        rise: DerivedSignal | None = None,
        jump: DerivedSignal | None = None,
    ) -> None:
        self._median, self._to_peak, self._rise, self._jump = gauge, to_peak, rise, jump
        self.gauges = tuple(gauge for gauge in (gauge, to_peak, rise, jump) if gauge)
        self._last = self._first = np.empty(0)
        super().__init__(name, signal)

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Feature."""
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
        value = median(self._last[np.isfinite(self._last)])
        numbers = {self._median.name: value}
        if self._to_peak:
            numbers[self._to_peak.name] = value / self._peak if self._peak > 0 else math.nan
        if self._rise:
            numbers[self._rise.name] = value - median(self._first[np.isfinite(self._first)])
        if self._jump:
            numbers[self._jump.name] = value - self._before
        self._before = value
        self._peak = float(np.fmax(self._peak, value))
        return numbers

    measures = own_signals

    def observe_block(self, steps: Ints, values: Array) -> Block:
        """See `blocks`."""
        now = self._columns.of(self.signal, values)
        last = carried(now, self._last)
        value = row_medians(last)
        numbers: dict[str, Array | OnDemand] = {self._median.name: value}
        peaks = np.fmax.accumulate(np.append(self._peak, value))
        if self._to_peak:
            with np.errstate(invalid="ignore", divide="ignore"):
                numbers[self._to_peak.name] = np.where(peaks[:-1] > 0, value / peaks[:-1], np.nan)
        begun = carried(np.where(np.isnan(self._first), now[::-1], np.nan), self._first)[-1]
        if self._rise:
            known = ~np.isnan(carried(now, self._first))
            numbers[self._rise.name] = value - row_medians(np.where(known, begun, np.nan))
        if self._jump:
            numbers[self._jump.name] = np.diff(value, prepend=self._before)
        self._last, self._first = last[-1].copy(), begun
        self._peak, self._before = float(peaks[-1]), float(value[-1])
        return self._many(np.arange(len(steps)), numbers)


def rising(signal: str) -> PlainFeature:
    """A signal, and its rise above its first value of the run."""
    return PlainFeature(signal, DerivedSignal(f"{signal}_rise", f"{signal} minus its first value of the run."))
