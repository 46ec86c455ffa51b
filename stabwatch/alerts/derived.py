"""Derived signals: trend, robust z, ratios to the own past, computed step by step and exported as gauges.

A *family* turns the raw series of a few signals into gauges over one axis of layers. Everything is a
function of the measured points so far, in order: one record at a time or many give the same numbers.
The time axis is the step, and a point exists only where a signal was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stabwatch.runlog import SeriesKey

Array = NDArray[np.float64]
ATTENTION_LIMIT = 100.0
"""QK-clip's tau: the largest attention logit that MuonClip lets stand."""
WINDOW = 64


@dataclass(frozen=True)
class Derived:
    """Declaration of one derived gauge; metric name and help come from here."""

    name: str
    help: str
    unit: str = "1"
    level: str = "layer"

    @property
    def metric(self) -> str:
        """Name on /metrics."""
        return f"stabwatch_{self.name}"


class Ring:
    """The last `size` points of many series: steps and values, (series, size), NaN where there is none yet."""

    def __init__(self, series: int, size: int) -> None:
        self.steps = np.full((series, size), np.nan)
        self.values = np.full((series, size), np.nan)
        self.count = np.zeros(series, dtype=np.int64)

    def push(self, rows: NDArray[np.int64], step: float, values: Array) -> None:
        """Append one point to each of some series."""
        at = self.count[rows] % self.values.shape[1]
        self.steps[rows, at] = step
        self.values[rows, at] = values
        self.count[rows] += 1

    def ordered(self, row: int) -> Array:
        """Values of one series, oldest first."""
        n, size = int(self.count[row]), self.values.shape[1]
        return self.values[row, :n] if n <= size else np.roll(self.values[row], -(n % size))


class Family(Protocol):
    """Turns raw signals into gauges. `gauges` is the declaration; `update` gives (layers, gauge) values."""

    name: str
    signal: str
    gauges: tuple[Derived, ...]

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """Take the series of a slot table; layers seen before keep their past."""

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """One record: gauges by name, each (layers,), NaN where not measured; None when nothing was measured."""

    @property
    def layers(self) -> list[str]: ...


class _Columns:
    """Columns of some signals by layer, robust to tables that change."""

    def __init__(self, *signals: str) -> None:
        self.signals = signals
        self.layers: list[str] = []
        self._columns: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        for key in keys:
            if key.signal in self.signals and key.layer not in self.layers:
                self.layers.append(key.layer)
        for signal in self.signals:
            found = [(self.layers.index(k.layer), i) for i, k in enumerate(keys) if k.signal == signal]
            self._columns[signal] = (
                np.array([row for row, _ in found], dtype=np.int64),
                np.array([column for _, column in found], dtype=np.int64),
            )

    def of(self, signal: str, values: Array) -> Array:
        out = np.full(len(self.layers), np.nan)
        rows, columns = self._columns[signal]
        out[rows] = values[columns]
        return out


def _grown(ring: Ring, series: int) -> Ring:
    if len(ring.count) == series:
        return ring
    bigger = Ring(series, ring.values.shape[1])
    old = len(ring.count)
    bigger.steps[:old], bigger.values[:old], bigger.count[:old] = ring.steps, ring.values, ring.count
    return bigger


class ScalarFamily:
    """Robust z and ratio of a run-level signal against its own past, and the share of the progress it has lost.

    robust z: (x - median) / (1.4826 MAD) over the last 64 points before this one, of ln x for a positive scale
    signal. ratio: x / that median. lost: (m - best) / (first - best), m the median of the last 16 points,
    best its least value so far and first its first: 1 means that everything learned is gone.
    """

    def __init__(self, name: str, signals: tuple[str, ...], *, logarithmic: bool) -> None:
        self.name = name
        self.signal = signals[0]
        self._signals = signals
        self._log = logarithmic
        self._columns = _Columns(*signals)
        self._ring = Ring(1, WINDOW)
        self._first: float | None = None
        self._best = math.inf
        self._used = ""
        self.gauges: tuple[Derived, ...] = (
            Derived(f"{name}_robust_z", f"Robust z-score of {name} against its last {WINDOW} values.", level="run"),
            Derived(f"{name}_to_median_ratio", f"{name} over the median of its last {WINDOW} values.", "ratio", "run"),
            Derived(f"{name}_lost_ratio", f"Share of the progress of {name} that has been lost again.", "ratio", "run"),
        )

    @property
    def layers(self) -> list[str]:
        """The run itself."""
        return [""]

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Family."""
        self._columns.bind(keys)

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """See Family."""
        x = self._pick(values)
        if math.isnan(x):
            return None
        past = self._ring.ordered(0)
        z, ratio = self._against(past, x)
        self._ring.push(np.zeros(1, dtype=np.int64), step, np.array([x]))
        numbers = (z, ratio, self._lost())
        return {g.name: np.array([n]) for g, n in zip(self.gauges, numbers, strict=True)} | {
            self.name: np.array([x]),
            "points": np.array([float(self._ring.count[0])]),
        }

    def _pick(self, values: Array) -> float:
        for signal in self._signals:
            found = self._columns.of(signal, values) if self._columns.layers else np.array([])
            if len(found) and not np.isnan(found[0]):
                if self._used and self._used != signal:
                    continue  # one source only: before and after clipping are different numbers
                self._used = signal
                return float(found[0]) if np.isfinite(found[0]) else math.nan
        return math.nan

    def _against(self, past: Array, x: float) -> tuple[float, float]:
        if len(past) < 8:
            return math.nan, math.nan
        middle = float(np.median(past))
        if self._log:
            tiny = 1e-30
            shown, value = np.log(np.maximum(past, tiny)), math.log(max(x, tiny))
        else:
            shown, value = past, x
        centre = float(np.median(shown))
        spread = 1.4826 * float(np.median(np.abs(shown - centre)))
        floor = 0.02 if self._log else 0.005 * abs(centre) + 1e-12
        return (value - centre) / max(spread, floor), x / middle if middle > 0 else math.nan

    def _lost(self) -> float:
        recent = self._ring.ordered(0)[-16:]
        if len(recent) < 16:
            return math.nan
        middle = float(np.median(recent))
        spread = 1.4826 * float(np.median(np.abs(recent - middle)))
        if self._first is None:
            self._first = float(self._ring.ordered(0)[0])
        self._best = min(self._best, middle)
        learned = max(self._first - self._best, 4 * spread, 0.1 * abs(self._best), 1e-6)
        return (middle - self._best) / learned


class AttentionFamily:
    """The best known lower bound of each layer's largest attention logit, its growth, and the steps left.

    bound: the exact value where it was measured, else the lower end of the bracket. growth: slope of ln(bound)
    per step by least squares over the last 32 points. steps to limit: at that growth, until 100.
    """

    name = "attention_logit"
    signal = "attention_logit_lower"
    gauges: tuple[Derived, ...] = (
        Derived("attention_logit_bound", "Largest attention logit that is certain: exact, or the bracket's lower end."),
        Derived("attention_logit_growth", "Slope of ln(attention_logit_bound) per step over its last 32 points."),
        Derived(
            "attention_logit_steps_to_limit",
            f"Steps until the bound reaches {ATTENTION_LIMIT:g} at its present growth.",
        ),
    )

    def __init__(self) -> None:
        self._columns = _Columns("attention_logit_lower", "attention_logit_max")
        self._ring = Ring(0, 32)

    @property
    def layers(self) -> list[str]:
        """Layers in forward order."""
        return self._columns.layers

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Family."""
        self._columns.bind(keys)
        self._ring = _grown(self._ring, len(self.layers))

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """See Family."""
        if not self.layers:
            return None
        bound = np.fmax(
            self._columns.of("attention_logit_lower", values), self._columns.of("attention_logit_max", values)
        )
        rows = np.flatnonzero(np.isfinite(bound))
        if not len(rows):
            return None
        self._ring.push(rows, step, np.log(np.maximum(bound[rows], 1.0)))
        growth = np.full(len(bound), np.nan)
        growth[rows] = slope(self._ring.steps[rows], self._ring.values[rows])
        with np.errstate(invalid="ignore", divide="ignore"):
            left = np.log(ATTENTION_LIMIT / np.maximum(bound, 1.0)) / growth
        left = np.where(bound >= ATTENTION_LIMIT, 0.0, np.where(growth > 0, left, np.inf))
        left[np.isnan(bound)] = np.nan
        points = self._ring.count.astype(np.float64)
        names = [g.name for g in self.gauges]
        return dict(zip(names, (bound, growth, left), strict=True)) | {"points": points}


def slope(steps: Array, values: Array) -> Array:
    """Least-squares slope of each row over its measured points; NaN below four."""
    seen = ~np.isnan(values)
    n = seen.sum(axis=1)
    x = np.where(seen, steps, 0.0)
    y = np.where(seen, values, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_x, mean_y = x.sum(axis=1) / n, y.sum(axis=1) / n
        dx = np.where(seen, steps - mean_x[:, None], 0.0)
        dy = np.where(seen, values - mean_y[:, None], 0.0)
        out = (dx * dy).sum(axis=1) / (dx * dx).sum(axis=1)
    return np.where(n >= 4, out, np.nan)


class GrowthFamily:
    """A layer's value over the least of its last 64 measured points: how far it has come up from where it was."""

    def __init__(self, name: str, signal: str, help: str) -> None:
        self.name = name
        self.signal = signal
        self.gauges: tuple[Derived, ...] = (Derived(f"{name}_growth_ratio", help, "ratio"),)
        self._columns = _Columns(signal)
        self._ring = Ring(0, WINDOW)

    @property
    def layers(self) -> list[str]:
        """Layers in forward order."""
        return self._columns.layers

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Family."""
        self._columns.bind(keys)
        self._ring = _grown(self._ring, len(self.layers))

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """See Family."""
        if not self.layers:
            return None
        now = self._columns.of(self.signal, values)
        rows = np.flatnonzero(np.isfinite(now))
        if not len(rows):
            return None
        self._ring.push(rows, step, now[rows])
        ratio = np.full(len(now), np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio[rows] = now[rows] / np.nanmin(self._ring.values[rows], axis=1)
        return {self.gauges[0].name: ratio, self.signal: now, "points": self._ring.count.astype(np.float64)}


class DriftFamily:
    """How far the mean logsumexp of the output logits has moved from its first value."""

    name = "output_logit"
    signal = "output_logit_logsumexp"
    gauges: tuple[Derived, ...] = (
        Derived("output_logit_drift", "Absolute change of output_logit_logsumexp since its first value.", "nat", "run"),
    )

    def __init__(self) -> None:
        self._columns = _Columns(self.signal)
        self._first = math.nan
        self._points = 0

    @property
    def layers(self) -> list[str]:
        """The run itself."""
        return [""]

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Family."""
        self._columns.bind(keys)

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """See Family."""
        found = self._columns.of(self.signal, values) if self._columns.layers else np.array([np.nan])
        if not np.isfinite(found[0]):
            return None
        if math.isnan(self._first):
            self._first = float(found[0])
        self._points += 1
        return {
            self.gauges[0].name: np.abs(found - self._first),
            self.signal: found,
            "points": np.array([float(self._points)]),
        }


class NonFiniteFamily:
    """Non-finite values of this record, by the place where they were counted ('gradient:blocks.0').

    Gradients of a step that the gradient scaler skipped are left out: there a non-finite gradient is routine.
    """

    name = "nonfinite"
    signal = "nonfinite"
    gauges: tuple[Derived, ...] = ()

    def __init__(self) -> None:
        self._columns: list[int] = []
        self._gradient = np.zeros(0, dtype=bool)
        self._skipped: int | None = None
        self.keys: list[SeriesKey] = []

    @property
    def layers(self) -> list[str]:
        """One row per counter."""
        return [key.layer for key in self.keys]

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Family."""
        for key in keys:
            if key.signal.endswith("nonfinite_total") and key not in self.keys:
                self.keys.append(key)
        place = {key: i for i, key in enumerate(keys)}
        self._columns = [place.get(key, -1) for key in self.keys]
        self._gradient = np.array([key.signal.startswith("gradient") for key in self.keys], dtype=bool)
        self._skipped = place.get(SeriesKey("skipped_steps_total"))

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """See Family."""
        if not self.keys:
            return None
        counts = np.append(values, np.nan)[self._columns]
        if self._skipped is not None and values[self._skipped] > 0:
            counts[self._gradient] = np.nan
        return None if np.isnan(counts).all() else {"nonfinite": counts, "points": np.ones(len(counts))}


def families() -> tuple[Family, ...]:
    """Fresh state for one run."""
    return (
        NonFiniteFamily(),
        ScalarFamily("loss", ("loss",), logarithmic=False),
        ScalarFamily("gradient_norm", ("gradient_norm_before_clip", "gradient_norm"), logarithmic=True),
        AttentionFamily(),
        DriftFamily(),
        GrowthFamily(
            "activation", "activation_abs_max", f"activation_abs_max over the least of its last {WINDOW} values."
        ),
    )


DERIVED: tuple[Derived, ...] = tuple(gauge for family in families() for gauge in family.gauges)
