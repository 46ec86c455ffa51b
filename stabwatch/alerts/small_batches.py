"""Losses of small batches, as the last one of an epoch may be, against those of the whole batches before them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

from stabwatch.alerts.blocks import Block
from stabwatch.alerts.features import DerivedSignal, RunFeature
from stabwatch.alerts.objectives import OwnData, is_rewarded
from stabwatch.alerts.statistics import Array, Bools, Ints, median
from stabwatch.runlog import SeriesKey

BEFORE = 16
"""Records before a small batch, all of which are whole ones."""
SMALL = 0.25
"""Of the smallest of these: a batch below it is small."""
LAST = 5
"""Small batches whose losses are looked at."""


class SmallBatchFeature(RunFeature):
    """For how many small batches in a row the loss was above all of the 16 before, and how far above the last ones.

    Batch norm of a few samples makes it so. Only steps of small batches are points; NaN for a policy and a game.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "small_batches_high", f"Small batches in a row whose loss was above all of the {BEFORE} before.", "1", "run"
        ),
        DerivedSignal(
            "small_batch_loss_ratio",
            f"Loss of a small batch over the largest of the {BEFORE} before, median of the last {LAST}.",
            "ratio",
            "run",
        ),
    )

    def __init__(self) -> None:
        self._rewarded = False
        super().__init__(
            "small_batch", "loss", "samples_per_second", "step_seconds", "calls_without_gradient", "opponent_steps"
        )

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Feature."""
        super().bind(keys)
        self._rewarded = is_rewarded(keys)

    def _begin(self) -> None:
        self._past: deque[tuple[float, float]] = deque(maxlen=BEFORE)
        self._ratios: deque[float] = deque(maxlen=LAST)
        self._high, self._own = 0, OwnData()

    def _observe(self, values: Array) -> dict[str, float] | None:
        loss, speed, seconds, acted, opposed = (self._one(signal, values) for signal in self._columns.signals)
        self._own.record(acted, opposed)
        samples, past = speed * seconds, [*self._past]
        if not math.isfinite(loss + samples):
            return None
        if len(past) < BEFORE or samples >= SMALL * min(n for _, n in past):
            self._past.append((loss, samples))
            return None
        most = max(x for x, _ in past)
        self._high = self._high + 1 if loss > most > 0 else 0
        self._ratios.append(loss / most if most > 0 else math.nan)
        judged = not (self._rewarded or self._own.made)
        numbers = (float(self._high) if judged else math.nan, median(np.array(self._ratios)))
        return dict(zip((g.name for g in self.gauges), numbers, strict=True)) | {"loss": loss, "samples": samples}

    def measures(self, values: Array) -> Bools:
        """See `blocks`: each record counts."""
        return np.ones(len(values), dtype=bool)

    def observe_block(self, steps: Ints, values: Array) -> Block | None:
        """See `blocks`; None where a batch may be a small one."""
        loss, speed, seconds, acted, opposed = (self._column(signal, values) for signal in self._columns.signals)
        with np.errstate(all="ignore"):
            counts = speed * seconds
            known = np.isfinite(loss + counts)
        samples = counts[known]
        every = np.append([n for _, n in self._past], samples)
        if len(every) and every.min() < SMALL * every.max():
            return None
        self._past.extend(zip(loss[known][-BEFORE:].tolist(), samples[-BEFORE:].tolist(), strict=True))
        self._own.records(acted, opposed)
        none = np.empty(0, dtype=np.int64)
        return self._many(none, {name: np.empty(0) for name in (*(g.name for g in self.gauges), "loss", "samples")})
