"""How large updates are, and whether the optimizer looks for its steps by itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stabwatch.alerts.blocks import Block, BlockGauges
from stabwatch.alerts.columns import LayerColumns
from stabwatch.alerts.features import DerivedSignal, MedianFeature, own_signals
from stabwatch.alerts.statistics import Array, Ints
from stabwatch.runlog import SeriesKey

EARLY = 8
"""Points at the beginning of a run; `UpdateTooLarge` judges those that follow."""
SEARCHES = 3.0
"""Backward passes within the optimizer's own step from which on it goes on until it has found a low loss (L-BFGS)."""


class UpdateFeature(MedianFeature):
    """The median update over the weights, beside whether the optimizer looks for its steps by itself.

    L-BFGS evaluates the loss many times in a step, and takes none any more where it has converged.
    """

    def __init__(self) -> None:
        super().__init__(
            "update",
            "update_to_weight_ratio",
            DerivedSignal(
                "update_to_weight_median_ratio", "Median over layers of update_to_weight_ratio.", "ratio", "run"
            ),
            DerivedSignal(
                "update_to_weight_to_peak_ratio",
                "update_to_weight_median_ratio over its previous peak.",
                "ratio",
                "run",
            ),
        )
        self._searches = DerivedSignal(
            "update_found_by_closure",
            f"1 where the optimizer called a closure {SEARCHES:g} times in a step, and had moved the weights; else 0.",
            scope="run",
        )
        self._growth = DerivedSignal(
            "update_to_weight_to_first_ratio",
            f"update_to_weight_median_ratio over its first value, at the first {EARLY} points; then 0.",
            "ratio",
            "run",
        )
        self.gauges = (*self.gauges, self._searches, self._growth)
        self._closures = LayerColumns("closure_passes")

    def _begin(self) -> None:
        super()._begin()
        self._most = self._beginning = 0.0

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Feature."""
        super().bind(keys)
        self._closures.bind(keys)

    def _observe(self, values: Array) -> dict[str, float] | None:
        moved = self._peak > 0
        numbers = super()._observe(values)
        if numbers is None:
            return None
        passes = self._closures.number("closure_passes", values)
        self._most = max(self._most, passes) if passes > 0 else self._most
        growth = self._grown(np.array([numbers[self.gauges[0].name]]), self._points)[0]
        searches = float(self._most >= SEARCHES and moved)
        return numbers | {self._searches.name: searches, self._growth.name: float(growth)}

    def _grown(self, updates: Array, points: int) -> Array:
        """Updates over the first one that was not zero; 0 but for the first points of the run. points: those before."""
        if points >= EARLY:
            return np.zeros(len(updates))
        some = updates[updates > 0]
        self._beginning = self._beginning or float(some[0] if len(some) else 0.0)
        early = points + np.arange(len(updates)) < EARLY
        return np.where(early & (self._beginning > 0), updates / (self._beginning or 1.0), 0.0)

    measures = own_signals

    def observe_block(self, steps: Ints, values: Array) -> Block:
        """See `blocks`."""
        passes = self._closures.of_run("closure_passes", values)
        most = np.fmax.accumulate(np.append(self._most, passes))[1:]
        moved, points = self._peak > 0, self._points
        rows, found = super().observe_block(steps, values)
        peaks = np.fmax.accumulate(found.of(self.gauges[0].name)[:, 0])
        before = np.append(moved, peaks[:-1] > 0) | moved
        self._most = float(most[-1])
        searches = ((most >= SEARCHES) & before).astype(np.float64)[:, None]
        numbers = {gauge.name: found.of(gauge.name) for gauge in self.gauges[:-2]}
        growth = self._grown(found.of(self.gauges[0].name)[:, 0], points)[:, None]
        own = {self._searches.name: searches, self._growth.name: growth}
        return rows, BlockGauges({**numbers, **own, "points": found.of("points")})
