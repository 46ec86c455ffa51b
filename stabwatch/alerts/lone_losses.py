"""Losses that stand alone: one record as high as at first, among others that are far below it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stabwatch.alerts.blocks import Block
from stabwatch.alerts.features import DerivedSignal, RunFeature, own_signals
from stabwatch.alerts.objectives import OwnData, is_rewarded
from stabwatch.alerts.statistics import Array, Ints, median
from stabwatch.runlog import SeriesKey

AROUND = 8
"""Records before and after, all of which are far below."""
FAR = 5.0
FIRST = 8
"""Losses at the beginning whose median is that of a model that knows nothing."""
LEARNED = 0.5
"""Of the first loss: the others are below it."""
SAMPLES = 8.0
"""Fewest samples of a step: the loss of a few scatters that far by itself."""
MOST = 1e9
"""Largest ratio that is told."""
WITHIN = 256
"""Records over which lone losses are counted."""


class LoneFeature(RunFeature):
    """How many of the last 256 losses stood alone: five times the 8 before and the 8 after, and no lower than at first.

    Batches whose samples are all wrong look so. Those of a model that knows its data by heart are no higher than at
    first where a sample of many is wrong. Losses of few samples do not count; NaN for a policy and a game.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "loss_lone_records",
            f"Lone losses among the last {WITHIN}: at least {FAR:g} times those around them, and as high as at first.",
            "1",
            "run",
        ),
        DerivedSignal("loss_lone_ratio", "The last lone loss over the largest of those around it.", "ratio", "run"),
    )

    def __init__(self) -> None:
        self._rewarded = False
        super().__init__(
            "loss_lone", "loss", "samples_per_second", "step_seconds", "calls_without_gradient", "opponent_steps"
        )

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Feature."""
        super().bind(keys)
        self._rewarded = is_rewarded(keys)

    def _begin(self) -> None:
        self._first: list[float] = []
        self._past = np.empty((0, 3))
        self._found: list[tuple[float, float, float]] = [(-math.inf, 0.0, 0.0)]
        """Records of lone losses, how far they stood, and their steps; none at first."""
        self._records, self._own = 0, OwnData()

    def _observe(self, values: Array) -> dict[str, float] | None:
        found = self._of_rows(values[None], np.array([self._step]))
        return None if found is None else {name: float(numbers[0]) for name, numbers in found.items()}

    measures = own_signals

    def observe_block(self, steps: Ints, values: Array) -> Block | None:
        """See `blocks`."""
        rows = np.flatnonzero(np.isfinite(self._column("loss", values)))
        found = self._of_rows(values, steps)
        return self._many(rows, {} if found is None else found)

    def _of_rows(self, values: Array, steps: Ints) -> dict[str, Array] | None:
        """The numbers of the records (n, series) that have a loss."""
        loss, speed, seconds, acted, opposed = (self._column(signal, values) for signal in self._columns.signals)
        rows = np.isfinite(loss)
        if not rows.any():
            return None
        number = self._records + np.arange(1, int(rows.sum()) + 1)
        self._records, made = int(number[-1]), self._own.records(acted[rows], opposed[rows])
        with np.errstate(all="ignore"):
            x = np.stack((loss[rows], (speed * seconds)[rows], steps[rows].astype(np.float64)), axis=1)
        self._first += x[: max(0, FIRST - len(self._first)), 0].tolist()
        every = np.concatenate((self._past, x))
        self._found += self._look(every, int(number[0]) - len(self._past))
        self._past = every[-2 * AROUND :]
        count, ratio, step, apart = self._counted(number)
        numbers = (np.where(made | self._rewarded, np.nan, count), ratio)
        beside = {"loss": x[:, 0], "loss_lone_step": step, "loss_lone_apart": apart}
        return dict(zip((g.name for g in self.gauges), numbers, strict=True)) | beside

    def _counted(self, number: Ints) -> tuple[Array, Array, Array, Array]:
        """At each of these records: how many lone losses are known and not too old.

        Then how far the last one stood, its step, and how many steps after the one before.
        """
        lone, ratios, steps = np.array(self._found).T
        known = np.searchsorted(lone + AROUND, number, side="right")
        old = np.searchsorted(lone, number - WITHIN, side="right")  # with the one that is none
        self._found = self._found[int(old[-1]) - 1 :]
        last, before = known - 1, np.maximum(known - 2, 0)
        return (known - old).astype(np.float64), ratios[last], steps[last], steps[last] - steps[before]

    def _look(self, every: Array, first: int) -> list[tuple[float, float, float]]:
        """Of losses, samples and steps (n, 3), the first of which are this record's: which stand alone, and how far."""
        if len(every) <= 2 * AROUND:
            return []
        windows = sliding_window_view(every[:, 0], 2 * AROUND + 1)
        around = np.maximum(windows[:, :AROUND].max(axis=1), windows[:, AROUND + 1 :].max(axis=1))
        loss, samples, steps = every[AROUND : len(every) - AROUND].T
        with np.errstate(all="ignore"):  # of numbers near the end of their range
            level = median(np.array(self._first))
            far = (loss >= level) & (around > 0) & (around <= np.minimum(LEARNED * level, loss / FAR))
            found = np.flatnonzero(far & (samples >= SAMPLES))
            ratios = np.minimum(loss / around, MOST)
        return [(first + AROUND + int(i), float(ratios[i]), float(steps[i])) for i in found]
