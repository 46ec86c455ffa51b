"""What the derived signals are made with: rings of measured points, columns by layer, medians and slopes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stabwatch.runlog import SeriesKey

Array = NDArray[np.float64]


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


class Family(Protocol):
    """Turns raw signals into gauges over one axis of layers. `gauges` is the declaration."""

    name: str
    signal: str
    gauges: tuple[Derived, ...]

    @property
    def layers(self) -> list[str]:
        """The axis; layers are only ever added."""

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """Take the series of a slot table; layers seen before keep their past."""

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """One record: numbers by name, each (layers,), NaN where not measured; None when nothing was measured.

        Always there: every gauge, and `points`, how many points of each layer have been measured.
        """

    def restart(self) -> None:
        """Forget the past, keep the layers: the run goes on from an earlier step."""


class Ring:
    """The last `size` points of many series: steps and values, (series, size), NaN where there is none yet."""

    def __init__(self, size: int) -> None:
        self.steps = np.full((0, size), np.nan)
        self.values = np.full((0, size), np.nan)
        self.count = np.zeros(0, dtype=np.int64)

    def grow(self, series: int) -> None:
        """Make room for series that appeared."""
        more = series - len(self.count)
        if more > 0:
            self.steps = np.pad(self.steps, ((0, more), (0, 0)), constant_values=np.nan)
            self.values = np.pad(self.values, ((0, more), (0, 0)), constant_values=np.nan)
            self.count = np.pad(self.count, (0, more))

    def clear(self) -> None:
        """Drop all points."""
        self.steps[:], self.values[:], self.count[:] = np.nan, np.nan, 0

    def push(self, rows: NDArray[np.int64], step: float, values: Array) -> None:
        """Append one point to each of some series."""
        at = self.count[rows] % self.values.shape[1]
        self.steps[rows, at] = step
        self.values[rows, at] = values
        self.count[rows] += 1


class Columns:
    """Columns of some signals by layer, robust to tables that change."""

    def __init__(self, *signals: str) -> None:
        self.signals = signals
        self.layers: list[str] = []
        self._columns: dict[str, tuple[NDArray[np.int64] | None, NDArray[np.int64]]] = {}
        """Rows and columns by signal; no rows where the columns are those of all rows in order."""

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """Find the columns in a new table; layers that it lacks stay, unmeasured."""
        mine = [(key, column) for column, key in enumerate(keys) if key.signal in self.signals]
        self.layers = list(dict.fromkeys([*self.layers, *(key.layer for key, _ in mine)]))
        row = {layer: i for i, layer in enumerate(self.layers)}
        for signal in self.signals:
            found = [(row[key.layer], column) for key, column in mine if key.signal == signal]
            rows, columns = (np.array([pair[i] for pair in found], dtype=np.int64) for i in (0, 1))
            whole = len(rows) == len(self.layers) and bool((np.diff(rows, prepend=-1) == 1).all())
            self._columns[signal] = (None if whole else rows, columns)

    def of(self, signal: str, values: Array) -> Array:
        """Values of one signal by layer, NaN where the table has no such series."""
        rows, columns = self._columns[signal]
        if rows is None:
            return np.asarray(values[columns])
        out = np.full(len(self.layers), np.nan)
        out[rows] = values[columns]
        return out


class RunFamily:
    """A family whose only row is the run itself. What it says of a record is its `_observe`."""

    gauges: tuple[Derived, ...] = ()

    def __init__(self, name: str, *signals: str) -> None:
        self.name, self.signal = name, signals[0]
        self._columns = Columns(*signals)
        self._points = 0
        self._begin()

    @property
    def layers(self) -> list[str]:
        """The run itself."""
        return [""]

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Family."""
        self._columns.bind(keys)

    def restart(self) -> None:
        """See Family."""
        self._points = 0
        self._begin()

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """See Family."""
        found = self._observe(values)
        if found is None:
            return None
        self._points += 1
        return {name: np.array([n]) for name, n in {**found, "points": float(self._points)}.items()}

    def _begin(self) -> None:
        """Forget the past."""

    def _observe(self, values: Array) -> dict[str, float] | None:
        """Numbers of one record by name, every gauge among them; None when nothing was measured."""
        raise NotImplementedError

    def _one(self, signal: str, values: Array) -> float:
        """A number of the run; NaN where there is none."""
        found = self._columns.of(signal, values)
        return float(found[0]) if len(found) else math.nan


def middle(values: Array) -> float:
    """Median of finite numbers; NaN of none. (np.median costs ten times as much on a few dozen numbers.)"""
    n = len(values)
    if not n:
        return math.nan
    ordered = values.copy()
    ordered.sort()
    return float(ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def middle_of_each(columns: Array) -> Array:
    """Lower median of the numbers of each column that are not NaN; NaN of none. columns: (points, series)."""
    ordered = np.sort(columns, axis=0)
    return ordered[((~np.isnan(columns)).sum(axis=0) - 1) // 2, np.arange(columns.shape[1])]


def robust_spread(values: Array) -> float:
    """1.4826 times the median absolute deviation: the standard deviation, if the values were normal."""
    return 1.4826 * middle(np.abs(values - middle(values)))


def exceeds(some: Array, others: Array) -> float:
    """Share of all pairs in which one of `some` is the larger, ties as halves (Mann-Whitney's U over all pairs).

    0.5 where there is no difference, 1 where every one is larger than every other. It knows no scale, and no outlier
    moves it far.
    """
    difference = some[:, None] - others[None, :]
    ties = difference.size - np.count_nonzero(difference)
    return (np.count_nonzero(difference > 0) + ties / 2) / difference.size


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
