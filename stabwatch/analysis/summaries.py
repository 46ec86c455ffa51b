"""A summary of each series of a run, updated batch by batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from stabwatch.runlog import RecordBatch, SeriesKey


@dataclass(frozen=True)
class SeriesSummary:
    """Summary of one series: measured points, first and last value, extreme finite values and their steps."""

    signal: str
    layer: str
    points: int
    first: float
    last: float
    least: float
    largest: float
    largest_step: int
    nonfinite: int


class Summaries:
    """Summaries of a run. records, first_step, last_step, duration (seconds): of the records so far."""

    def __init__(self) -> None:
        self.records = 0
        self.first_step: int | None = None
        self.last_step: int | None = None
        self._began = self._last = 0.0
        self._series: dict[SeriesKey, SeriesSummary] = {}

    @property
    def last_time(self) -> float | None:
        """Time of the last record, in seconds since the epoch; None without one."""
        return self._last if self.records else None

    @property
    def duration(self) -> float:
        """Seconds from the first record to the last."""
        return self._last - self._began

    def of_all(self) -> tuple[SeriesSummary, ...]:
        """Summaries of the series that were measured at least once, in order of appearance."""
        return tuple(summary for summary in self._series.values() if summary.points)

    def add(self, block: RecordBatch) -> None:
        """More records."""
        if not len(block):
            return
        if self.first_step is None:
            self.first_step, self._began = int(block.steps[0]), float(block.times[0])
        self.last_step, self._last = int(block.steps[-1]), float(block.times[-1])
        self.records += len(block)
        for key, now in zip(block.layout.keys, _of_block(block), strict=True):
            before = self._series.get(key)
            self._series[key] = now if before is None or not before.points else _merged(before, now)


def _of_block(block: RecordBatch) -> list[SeriesSummary]:
    values, measured = np.ascontiguousarray(block.values.T), np.ascontiguousarray(block.measured.T)
    finite = measured & np.isfinite(values)
    points, good = np.count_nonzero(measured, axis=1), np.count_nonzero(finite, axis=1)
    series = np.arange(len(values))
    first = values[series, measured.argmax(axis=1)]
    last = values[series, len(block) - 1 - measured[:, ::-1].argmax(axis=1)]
    least = np.where(finite, values, math.inf).min(axis=1)
    high = np.where(finite, values, -math.inf)
    peak = high.argmax(axis=1)
    largest, steps = high[series, peak], block.steps[peak]
    return [
        SeriesSummary(
            signal=key.signal,
            layer=key.layer,
            points=int(points[i]),
            first=float(first[i]) if points[i] else math.nan,
            last=float(last[i]) if points[i] else math.nan,
            least=float(least[i]) if good[i] else math.nan,
            largest=float(largest[i]) if good[i] else math.nan,
            largest_step=int(steps[i]) if good[i] else -1,
            nonfinite=int(points[i] - good[i]),
        )
        for i, key in enumerate(block.layout.keys)
    ]


def _merged(a: SeriesSummary, b: SeriesSummary) -> SeriesSummary:
    """Merge the summaries of two consecutive spans of records."""
    if not b.points:
        return a
    larger = b if math.isnan(a.largest) or b.largest > a.largest else a
    return SeriesSummary(
        signal=a.signal,
        layer=a.layer,
        points=a.points + b.points,
        first=a.first,
        last=b.last,
        least=float(np.fmin(a.least, b.least)),
        largest=larger.largest,
        largest_step=larger.largest_step,
        nonfinite=a.nonfinite + b.nonfinite,
    )
