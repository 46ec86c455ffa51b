"""Comparison of ranks from the rows of all of them, in the writer's thread of rank 0."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stabwatch.distributed.ranks import REPLICATED
from stabwatch.runlog import Accumulator, RecordLayout

BUSY_SOURCE = Accumulator("rank_source", "busy", "host")
"""The value of each rank; it is not written to the log."""
BUSY = Accumulator("rank_busy", "", "rank_spread")
LOSS = Accumulator("rank_loss", "", "rank_spread")
NONFINITE = Accumulator("rank_nonfinite", "", "rank_spread")
SHARDED = "parameters are sharded over ranks: there are no replicas to compare"
MIN_DIFFERENCE = 1e-9
"""Below this difference two replicas count as equal; used to attribute a difference, not for an alert."""

CLEAR = 3.0
"""Of two ranks that diverge, the faulty one is that whose weights moved this many times as far."""

Rows = NDArray[np.float64]


class RankHealth:
    """Computes the accumulators that compare ranks. A layer is compared if several ranks measured it in the same "
    "step."""

    def __init__(self, device: RecordLayout, sharded: bool) -> None:
        self._busy = _starts(device, [c for c in device.cells if c == BUSY_SOURCE])
        self._losses = _starts(device, [c for c in device.cells if c.tap in ("loss_source", "token_loss")])
        own = [c for c in device.cells if c.tap not in REPLICATED]
        self._nonfinite = _field(device, own, "nonfinite")
        weights = [c for c in device.cells if c.tap == "weight" and c.reduction == "moments"]
        replicas = [] if sharded else weights
        self._weights, self._broken = _field(device, replicas, "sumsq"), _field(device, replicas, "nonfinite")
        self.cells = (BUSY, LOSS, NONFINITE, *(Accumulator("replica", c.site, "replica") for c in replicas))
        self._last: Rows | None = None
        self._blamed = np.full(len(replicas), -1)

    def partials(self, gathered: NDArray[np.floating]) -> Rows:
        """The columns of `cells`, from gathered rows (ranks, device columns). With one rank nothing is measured."""
        rows: Rows = gathered.astype(np.float64)
        if len(rows) < 2:
            return np.full(15 + 3 * len(self._weights), np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            busy = np.where(rows[:, self._busy] > 0, rows[:, self._busy + 1], np.nan).max(axis=1, initial=-np.inf)
            spread = [_spread(busy), _spread(self._loss(rows)), _spread(np.nansum(rows[:, self._nonfinite], axis=1))]
            return np.concatenate([*spread, self._replicas(rows)])

    def _loss(self, rows: Rows) -> Rows:
        """The loss of each rank by its best source, (ranks,)."""
        found = np.full(len(rows), np.nan)
        for start in self._losses[::-1]:
            here = rows[:, start] > 0
            found = np.where(here, rows[:, start + 1] / rows[:, start], found)
        return found

    def _replicas(self, rows: Rows) -> Rows:
        """(3 * layers,): number of ranks that measured a layer, the largest difference, and its rank."""
        norms, bad = rows[:, self._weights], rows[:, self._broken]
        measured = ~np.isnan(norms)
        norms = np.where(bad > 0, np.inf, norms)
        count = measured.sum(axis=0)
        several = count > 1
        out = np.full((len(self._weights), 3), np.nan)
        if several.any():
            difference = _difference(norms, measured)
            jump = difference if self._last is None else np.abs(norms / self._last - 1)
            self._blame(difference, np.where(measured, jump, -np.inf), count, several)
            out[several] = np.column_stack([count, difference.max(axis=0), self._blamed])[several]
        self._last = norms if self._last is None else np.where(measured, norms, self._last)
        return out.reshape(-1)

    def _blame(self, difference: Rows, jump: Rows, count: NDArray[np.int64], several: NDArray[np.bool_]) -> None:
        """The most deviating rank; of two, the one that jumped when they diverged, while they differ."""
        differs = difference.max(axis=0) > MIN_DIFFERENCE
        pair = several & (count == 2) & differs
        new = pair & (self._blamed < 0)
        ordered = np.sort(np.where(np.isfinite(jump) | (jump == np.inf), jump, 0.0), axis=0)
        clear = ordered[-1] > CLEAR * ordered[-2]
        self._blamed[new] = np.where(clear, jump.argmax(axis=0), -1)[new]
        rest = several & ~pair
        self._blamed[rest] = np.where(differs, difference.argmax(axis=0), -1)[rest]


def _difference(norms: Rows, measured: NDArray[np.bool_]) -> Rows:
    """|norm - median over ranks| / median: 0 where not measured, inf if only that rank is not finite."""
    median = np.nanmedian(np.where(measured, norms, np.nan), axis=0)
    difference = np.abs(norms / np.where(median > 0, median, 1.0) - np.where(median > 0, 1.0, 0.0))
    both = np.isinf(norms) & np.isinf(median)
    return np.where(measured & ~both, np.where(np.isnan(difference), np.inf, difference), 0.0)


def _spread(values: Rows) -> Rows:
    """The columns of a `rank_spread` from one number per rank, without NaN and infinities."""
    good = np.isfinite(values)
    if good.sum() < 2:
        return np.full(5, np.nan)
    kept = np.where(good, values, -np.inf)
    return np.array([good.sum(), values[good].sum(), kept.max(), kept.argmax(), values[good].min()])


def _starts(table: RecordLayout, cells: list[Accumulator]) -> NDArray[np.int64]:
    return np.array([table.start(c) for c in cells], dtype=np.int64)


def _field(table: RecordLayout, cells: list[Accumulator], name: str) -> NDArray[np.int64]:
    """Columns of one field of some accumulators, of those that have it."""
    by_cell = dict(zip(table.cells, table.fields, strict=True))
    names = {c: [field for field, _ in by_cell[c]] for c in cells}
    return np.array([table.start(c) + names[c].index(name) for c in cells if name in names[c]], dtype=np.int64)
