"""The history of a run for the live page, in bounded memory. Every spike stays visible.

Steps are grouped into buckets. A bucket has the smallest and the largest value of each series, and their order. If
there are too many buckets, neighbours are merged and each bucket spans twice the steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stabwatch.runlog import RecordBatch, SeriesKey

BUCKETS = 400


@dataclass(frozen=True)
class _Buckets:
    """Smallest and largest value by (bucket, series), float32; NaN: not measured. low_first: the order of the two."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    low_first: NDArray[np.bool_]


@dataclass(frozen=True)
class Points:
    """A part of the history. values: (len(steps), series), NaN where not measured.

    start: its first bucket. next: the bucket that may still change. A bucket has `per_bucket` points.
    """

    epoch: int
    start: int
    next: int
    per_bucket: int
    steps: list[int]
    times: list[float]
    """When they were recorded, in seconds since the epoch."""
    values: NDArray[np.float32]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: one list of values per series, four digits each, None where not measured."""
        columns = _four_digits(self.values).T.tolist()
        return {
            "epoch": self.epoch,
            "from": self.start,
            "next": self.next,
            "per_bucket": self.per_bucket,
            "steps": self.steps,
            "times": [round(time, 2) for time in self.times],
            "values": [[None if v != v else v for v in column] for column in columns],
        }


def _four_digits(values: NDArray[np.float32]) -> NDArray[np.float64]:
    x = values.astype(np.float64)
    size = np.where((x == 0) | np.isnan(x), 1.0, np.abs(x))
    digits = 3 - np.floor(np.log10(size))
    # Powers of ten with a positive exponent are exact up to 1e22: the result prints as short as it can.
    up, down = 10.0 ** np.maximum(digits, 0), 10.0 ** np.maximum(-digits, 0)
    return np.asarray(np.round(x * up / down) / up * down)


def _merged(a: _Buckets, b: _Buckets) -> _Buckets:
    """Two buckets merged; `a` is the earlier one."""
    low, high = np.fmin(a.low, b.low), np.fmax(a.high, b.high)
    low_from_a, high_from_a = a.low == low, a.high == high
    both = np.where(low_from_a, a.low_first, b.low_first)
    return _Buckets(low, high, np.where(low_from_a == high_from_a, both, low_from_a))


def _joined(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    return min(a[0], b[0]), max(a[1], b[1])


class History:
    """The series of the `wanted` signals over the whole run, in at most `buckets` buckets."""

    def __init__(self, wanted: frozenset[str], buckets: int = BUCKETS) -> None:
        self.keys: list[SeriesKey] = []
        self.stride = 1
        self.epoch = 0
        """Increases when data that was sent before has changed."""
        self._wanted = wanted
        self._limit = buckets
        self._column: dict[SeriesKey, int] = {}
        self._ids: list[int] = []
        self._data: list[_Buckets] = []
        self._spans: list[tuple[float, float]] = []
        """Time of the first and of the last record of each bucket."""

    def observe(self, block: RecordBatch) -> None:
        """Add a record batch."""
        picked = [i for i, key in enumerate(block.layout.keys) if key.signal in self._wanted]
        if not picked or not len(block):
            return
        self._admit([block.layout.keys[i] for i in picked])
        columns = np.array([self._column[block.layout.keys[i]] for i in picked])
        values = block.values[:, picked]
        values = np.where(np.isfinite(values), values, np.nan).astype(np.float32)
        while self._spans_too_much(block):
            self._halve()
        for bucket in np.unique(block.steps // self.stride).tolist():
            mine = block.steps // self.stride == bucket
            times = block.times[mine]
            self._put(bucket, self._reduce(values[mine], columns), (float(times[0]), float(times[-1])))

    def rewind(self, step: int) -> None:
        """The run went back to a step: what it showed from there on is trained again, and is left out.

        A bucket that begins before the step stays.
        """
        stay = int(np.searchsorted(np.array(self._ids, np.int64) * self.stride, step))
        if stay < len(self._ids):
            self._ids, self._data, self._spans = self._ids[:stay], self._data[:stay], self._spans[:stay]
            self.epoch += 1

    def since(self, epoch: int, bucket: int) -> Points:
        """Points since a bucket.

        epoch, bucket: `epoch` and `next` of the last answer. Other values return everything.
        """
        start = bucket if epoch == self.epoch and 0 <= bucket <= len(self._ids) else 0
        steps = [i * self.stride for i in self._ids[start:]]
        times = [first for first, _ in self._spans[start:]]
        if self.stride > 1:
            steps = [s + half for s in steps for half in (0, self.stride // 2)]
            times = [time for first, last in self._spans[start:] for time in (first, (first + last) / 2)]
        per_bucket = 1 if self.stride == 1 else 2
        return Points(self.epoch, start, max(0, len(self._ids) - 1), per_bucket, steps, times, self._matrix(start))

    def _matrix(self, start: int) -> NDArray[np.float32]:
        data = [self._wide(b) for b in self._data[start:]]
        if not data:
            return np.empty((0, len(self.keys)), np.float32)
        low, high = np.stack([b.low for b in data]), np.stack([b.high for b in data])
        if self.stride == 1:
            return high
        low_first = np.stack([b.low_first for b in data])
        pair = np.stack([np.where(low_first, low, high), np.where(low_first, high, low)], axis=1)
        return pair.reshape(-1, len(self.keys))

    def _admit(self, keys: list[SeriesKey]) -> None:
        for key in keys:
            if key not in self._column:
                self._column[key] = len(self.keys)
                self.keys.append(key)
                self.epoch += 1

    def _reduce(self, rows: NDArray[np.float32], columns: NDArray[np.int64]) -> _Buckets:
        low, high = (np.full(len(self.keys), np.nan, np.float32) for _ in range(2))
        low_first = np.ones(len(self.keys), dtype=bool)
        low[columns], high[columns] = np.fmin.reduce(rows, axis=0), np.fmax.reduce(rows, axis=0)
        lowest = np.where(np.isnan(rows), np.inf, rows).argmin(axis=0)
        highest = np.where(np.isnan(rows), -np.inf, rows).argmax(axis=0)
        low_first[columns] = lowest <= highest
        return _Buckets(low, high, low_first)

    def _put(self, bucket: int, new: _Buckets, span: tuple[float, float]) -> None:
        at = int(np.searchsorted(self._ids, bucket))
        if at < len(self._ids) and self._ids[at] == bucket:
            self._data[at] = _merged(self._wide(self._data[at]), new)
            self._spans[at] = _joined(self._spans[at], span)
        else:
            self._ids.insert(at, bucket)
            self._data.insert(at, new)
            self._spans.insert(at, span)
        if at < len(self._ids) - 1:
            self.epoch += 1  # the step counter went back: earlier buckets have changed

    def _wide(self, b: _Buckets) -> _Buckets:
        """A bucket with a column for every series, including later ones."""
        more = len(self.keys) - len(b.low)
        if not more:
            return b
        nan = np.full(more, np.nan, np.float32)
        return _Buckets(
            np.concatenate([b.low, nan]), np.concatenate([b.high, nan]), np.concatenate([b.low_first, nan == 0])
        )

    def _spans_too_much(self, block: RecordBatch) -> bool:
        return len({*self._ids, *(block.steps // self.stride).tolist()}) > self._limit

    def _halve(self) -> None:
        self.stride *= 2
        self.epoch += 1
        ids, data, spans = self._ids, self._data, self._spans
        self._ids, self._data, self._spans = [], [], []
        for bucket, b, span in zip(ids, data, spans, strict=True):
            if self._ids and self._ids[-1] == bucket // 2:
                self._data[-1] = _merged(self._wide(self._data[-1]), self._wide(b))
                self._spans[-1] = _joined(self._spans[-1], span)
            else:
                self._ids.append(bucket // 2)
                self._data.append(b)
                self._spans.append(span)
