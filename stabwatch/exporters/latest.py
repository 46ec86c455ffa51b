"""Reduces the records of a run log to last values, worst values and accumulated counters."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from stabwatch.exporters.declared import declared
from stabwatch.runlog import RecordBatch, RecordLayout, SeriesKey
from stabwatch.signals import CATALOGUE

Array = NDArray[np.float64]

WINDOW_SECONDS = 60.0
BUCKET_SECONDS = 5.0
MAX_SERIES = 70_000
"""A model of 128 transformer blocks has about 58,000 with everything measured."""
CORE = (
    "attention_logit_upper", "attention_logit_max", "attention_logit_lower", "output_rms", "activation_abs_max",
    "layer_gradient_norm", "update_to_weight_ratio", "attention_entropy",
)  # fmt: skip
"""Signals of layers that stay when not all fit: those of the page's table, and what the first causes are read from."""
RESERVED = 600
"""Part of the limit that is reserved for alerts and for metrics of the agent itself."""


class SeriesCap:
    """Limits the number of series. A key that does not fit is left out for good, and counted."""

    def __init__(self, limit: int = MAX_SERIES) -> None:
        self.limit = limit
        self.used = 0
        self.dropped = 0
        self.dropped_signals: dict[str, None] = {}
        """Signals that are not exported by layer."""
        self._admitted: dict[Hashable, bool] = {}

    def admit(self, key: Hashable, series: int = 1, *, urgent: bool = False) -> bool:
        """Whether a key may be exported; `urgent` ones may use the reserve."""
        if key not in self._admitted:
            limit = self.limit if urgent else self.limit - min(RESERVED, self.limit // 2)
            fits = self.used + series <= limit
            self._admitted[key] = fits
            self.used += series if fits else 0
            self.dropped += 0 if fits else series
        return self._admitted[key]

    def has(self, key: Hashable) -> bool:
        """Whether a key was admitted."""
        return self._admitted.get(key, False)

    def admit_signal(self, signal: str, keys: Sequence[SeriesKey]) -> bool:
        """Whether all series of a signal fit that are new: some of its layers without the others would mislead.

        Signals of the whole run may use the reserve: they come late in the log, and are few.
        """
        each = declared(signal).series
        reserved = min(RESERVED, self.limit // 2) if declared(signal).label else 0
        new = [key for key in keys if key not in self._admitted]
        fits = self.used + each * len(new) <= self.limit - reserved
        for key in new:
            self._admitted[key] = fits
        self.used += each * len(new) if fits else 0
        self.dropped += 0 if fits else each * len(new)
        if new and not fits:
            self.dropped_signals[signal] = None
        return fits


def _importance(signal: str) -> tuple[bool, bool, int]:
    """Order of admission: signals of the run before those of layers, the core of them first, then by tier."""
    tier = CATALOGUE[signal].tier if signal in CATALOGUE else "sampled"
    core = signal in CORE or signal.endswith("nonfinite_total")
    return bool(declared(signal).label), not core, ("always", "sampled", "deep").index(tier)


class _Layout:
    """One record layout: which of its series are kept, and in which columns."""

    def __init__(self, layout: RecordLayout, columns: NDArray[np.int64]) -> None:
        self.layout = layout
        kept = columns >= 0
        self.kept = np.flatnonzero(kept)
        self.columns = columns[kept]

    def values(self, block: RecordBatch) -> Array:
        """(n, kept series)."""
        return block.values[:, self.kept]

    def measured(self, block: RecordBatch) -> NDArray[np.bool_]:
        """(n, kept series): measured at all; a measured value may itself be NaN or infinite."""
        return block.measured[:, self.kept]


class Latest:
    """The latest values of a run, one column per series in `keys`. `layers` is in forward order.

    last, last_step: last measured value and its step; NaN when there is none or when it was not finite.
    worst, worst_step: worst finite value of the whole run, and where.
    totals: counters, accumulated from the increments in the log.
    nonfinite: how many measured values were NaN or infinite.
    """

    def __init__(self, cap: SeriesCap, window_seconds: float = WINDOW_SECONDS) -> None:
        self.cap = cap
        self.keys: list[SeriesKey] = []
        self.layers: list[str] = []
        self.step: int | None = None
        self.time: float | None = None
        self.records = 0
        self.last = np.empty(0)
        self.last_step = np.empty(0, np.int64)
        self.worst = np.empty(0)
        self.worst_step = np.empty(0, np.int64)
        self.totals = np.empty(0)
        self.nonfinite = np.empty(0, np.int64)
        self._sign = np.empty(0)
        self._column: dict[SeriesKey, int] = {}
        self._layouts: dict[int, _Layout] = {}
        self._buckets: deque[tuple[int, Array]] = deque()
        self._kept_buckets = int(window_seconds / BUCKET_SECONDS) + 1
        self._newest = -np.inf
        self._arrived = 0.0

    def observe(self, block: RecordBatch, arrived: float) -> None:
        """Add a record batch. arrived: when it was read, on the reader's monotonic clock."""
        if not len(block):
            return
        layout = self._layout(block.layout)
        values, measured = layout.values(block), layout.measured(block)
        finite = measured & np.isfinite(values)
        columns = layout.columns
        self._update_last(values, measured, finite, block, columns)
        self._update_worst(np.where(finite, values, np.nan) * self._sign[columns], block, columns)
        self.totals[columns] += np.where(finite, values, 0.0).sum(axis=0)
        self.nonfinite[columns] += (measured & ~finite).sum(axis=0)
        self.step, self.time = int(block.steps[-1]), float(block.times[-1])
        self.records += len(block)
        if block.times.max() >= self._newest:
            self._newest, self._arrived = float(block.times.max()), arrived

    def clock(self, now: float) -> float:
        """Time in the training process (seconds since the epoch) at `now` on the reader's monotonic clock."""
        return self._newest + max(0.0, now - self._arrived)

    def window(self, now: float) -> Array:
        """Worst finite value of each series in about the last minute; the last value always counts.

        The window uses the clock of the training process, so a slow file system or a wrong host clock cannot hide a
        spike.
        """
        oldest = np.floor(self.clock(now) / BUCKET_SECONDS) - self._kept_buckets
        signed = self.last * self._sign
        for bucket, worst in self._buckets:
            if bucket > oldest:
                signed[: len(worst)] = np.fmax(signed[: len(worst)], worst)
        return signed * self._sign

    def _update_last(
        self,
        values: Array,
        measured: NDArray[np.bool_],
        finite: NDArray[np.bool_],
        block: RecordBatch,
        columns: NDArray[np.int64],
    ) -> None:
        seen = measured.any(axis=0)
        row = len(values) - 1 - np.argmax(measured[::-1], axis=0)
        at = (row[seen], np.flatnonzero(seen))
        self.last[columns[seen]] = np.where(finite[at], values[at], np.nan)
        self.last_step[columns[seen]] = block.steps[row[seen]]

    def _update_worst(self, signed: Array, block: RecordBatch, columns: NDArray[np.int64]) -> None:
        filled = np.where(np.isnan(signed), -np.inf, signed)
        row = filled.argmax(axis=0)
        peak = filled[row, np.arange(len(columns))]
        beaten = (peak > -np.inf) & ~(peak <= self.worst[columns] * self._sign[columns])
        self.worst[columns[beaten]] = (peak * self._sign[columns])[beaten]
        self.worst_step[columns[beaten]] = block.steps[row[beaten]]
        buckets = np.floor(block.times / BUCKET_SECONDS).astype(np.int64)
        for bucket in np.unique(buckets)[-self._kept_buckets :].tolist():
            rows = signed[buckets == bucket]
            mine = self._bucket(bucket)
            mine[columns] = np.fmax(mine[columns], np.fmax.reduce(rows, axis=0))

    def _bucket(self, bucket: int) -> Array:
        for i, (other, worst) in enumerate(self._buckets):
            if other == bucket:
                if len(worst) < len(self.keys):
                    worst = np.concatenate([worst, np.full(len(self.keys) - len(worst), np.nan)])
                    self._buckets[i] = (bucket, worst)
                return worst
        worst = np.full(len(self.keys), np.nan)
        self._buckets.append((bucket, worst))
        if len(self._buckets) > self._kept_buckets:
            self._buckets.popleft()
        return worst

    def _layout(self, layout: RecordLayout) -> _Layout:
        found = self._layouts.get(id(layout))
        if found is None:
            by_signal: dict[str, list[SeriesKey]] = {}
            for key in layout.keys:
                by_signal.setdefault(key.signal, []).append(key)
            for signal in sorted(by_signal, key=_importance):
                self.cap.admit_signal(signal, by_signal[signal])
                new = [key for key in by_signal[signal] if self.cap.has(key) and key not in self._column]
                self._column |= {key: len(self.keys) + i for i, key in enumerate(new)}
                self.keys += new
            self._grow()
            known = {*self.layers}
            named = {key.layer for key in layout.keys if key.layer and key in self._column}
            self.layers += [
                s for s in dict.fromkeys(c.site for c in layout.accumulators) if s in named and s not in known
            ]
            columns = np.array([self._column.get(key, -1) for key in layout.keys], dtype=np.int64)
            found = self._layouts[id(layout)] = _Layout(layout, columns)
        return found

    def _grow(self) -> None:
        new = self.keys[len(self.last) :]
        nan = np.full(len(new), np.nan)
        self.last = np.concatenate([self.last, nan])
        self.last_step = np.concatenate([self.last_step, np.zeros(len(new), np.int64)])
        self.worst = np.concatenate([self.worst, nan])
        self.worst_step = np.concatenate([self.worst_step, np.zeros(len(new), np.int64)])
        self.totals = np.concatenate([self.totals, np.zeros(len(new))])
        self.nonfinite = np.concatenate([self.nonfinite, np.zeros(len(new), np.int64)])
        self._sign = np.concatenate([self._sign, [-1.0 if declared(k.signal).worst == "min" else 1.0 for k in new]])
