"""Measured numbers of many series: the columns of each layer, and rolling windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stabwatch.alerts.statistics import Array, Bools, Ints, any_measured
from stabwatch.runlog import SeriesKey


class RollingWindow:
    """The last `size` points of many series: steps and values, (series, size), NaN where there is none yet."""

    def __init__(self, size: int) -> None:
        self.steps = np.full((0, size), np.nan)
        self.values = np.full((0, size), np.nan)
        self.count = np.zeros(0, dtype=np.int64)

    def grow(self, series: int) -> None:
        """Add rows for new series."""
        more = series - len(self.count)
        if more > 0:
            self.steps = np.pad(self.steps, ((0, more), (0, 0)), constant_values=np.nan)
            self.values = np.pad(self.values, ((0, more), (0, 0)), constant_values=np.nan)
            self.count = np.pad(self.count, (0, more))

    def clear(self) -> None:
        """Drop all points."""
        self.steps[:], self.values[:], self.count[:] = np.nan, np.nan, 0

    def extend(self, steps: Ints, values: Array, measured: Bools) -> PastWindows:
        """Append the measured points of several records, (n,) and (n, series). Returns the windows after each."""
        number = self.count + np.cumsum(measured, axis=0)
        past = PastWindows(self.steps.copy(), self.values.copy(), self.count.copy(), steps, values, measured, number)
        records, series = np.nonzero(measured & (number > number[-1] - self.values.shape[1]))
        at = (number[records, series] - 1) % self.values.shape[1]
        self.steps[series, at], self.values[series, at] = steps[records], values[records, series]
        self.count = number[-1].copy()
        return past

    def push(self, rows: NDArray[np.int64], step: float, values: Array) -> None:
        """Append one point to each of the given series."""
        at = self.count[rows] % self.values.shape[1]
        self.steps[rows, at] = step
        self.values[rows, at] = values
        self.count[rows] += 1


@dataclass(frozen=True)
class PastWindows:
    """The rolling windows of many series after each of n records.

    old_steps, old_values, old_count: the windows before all. steps, values, measured: the records. number: points of
    each series so far, (n, series).
    """

    old_steps: Array
    old_values: Array
    old_count: Ints
    steps: Ints
    values: Array
    measured: Bools
    number: Ints

    def at(self, records: Ints, series: Ints) -> tuple[Array, Array]:
        """Steps and values of the windows at some places, each (places, size), in the order of `RollingWindow`."""
        size = self.old_values.shape[1]
        newest = self.number[records, series][:, None] - 1
        point = newest - (newest - np.arange(size)) % size - self.old_count[series][:, None]
        owner, record = np.nonzero(self.measured.T)
        start = np.searchsorted(owner, series)[:, None]
        found = record[np.where(point >= 0, start + point, 0)]
        steps = np.where(point >= 0, self.steps[found], self.old_steps[series])
        return steps, np.where(point >= 0, self.values[found, series[:, None]], self.old_values[series])


class LayerColumns:
    """Columns of some signals by layer. The layout may change during a run. wanted: of layers, those to bind."""

    def __init__(self, *signals: str, wanted: Callable[[str], bool] = lambda layer: True) -> None:
        self.signals = signals
        self._wanted = wanted
        self.layers: list[str] = []
        self.first: dict[str, int | None] = {}
        """The column of each signal in the first row; None where the layout has none."""
        self._all = np.empty(0, dtype=np.int64)
        self._columns: dict[str, tuple[NDArray[np.int64] | None, NDArray[np.int64]]] = {}
        """Rows and columns by signal; rows are None where the columns cover all rows in order."""

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """Find the columns in a new layout. Layers that are not in it stay, as not measured."""
        mine = [
            (key, column) for column, key in enumerate(keys) if key.signal in self.signals and self._wanted(key.layer)
        ]
        self.layers = list(dict.fromkeys([*self.layers, *(key.layer for key, _ in mine)]))
        self._all = np.array([column for _, column in mine], dtype=np.int64)
        row = {layer: i for i, layer in enumerate(self.layers)}
        for signal in self.signals:
            found = [(row[key.layer], column) for key, column in mine if key.signal == signal]
            rows, columns = [r for r, _ in found], [column for _, column in found]
            whole = rows == list(range(len(self.layers)))
            self._columns[signal] = (None if whole else np.array(rows, np.int64), np.array(columns, np.int64))
            self.first[signal] = columns[0] if rows and not rows[0] else None

    def of(self, signal: str, values: Array) -> Array:
        """Values of one signal by layer, (..., layers) of (..., series); NaN where the layout has no such series."""
        rows, columns = self._columns[signal]
        found = values[columns] if values.ndim == 1 else np.take(values, columns, axis=-1)
        if rows is None:
            return found
        out = np.full((*values.shape[:-1], len(self.layers)), np.nan)
        out[..., rows] = found
        return out

    def of_run(self, signal: str, values: Array) -> Array:
        """Values of one signal in the first row, (n,) of (n, series); NaN where the layout has no such series."""
        column = self.first[signal]
        return np.full(len(values), np.nan) if column is None else np.take(values, column, axis=1)

    def number(self, signal: str, values: Array) -> float:
        """The same of one record, (series,)."""
        column = self.first[signal]
        return math.nan if column is None else float(values[column])

    @property
    def bound(self) -> bool:
        """Whether the layout has any of the signals."""
        return len(self._all) > 0

    def measured(self, values: Array) -> Bools:
        """Whether any of the signals was measured in each record, (n,) of (n, series)."""
        return any_measured(values, self._all)
