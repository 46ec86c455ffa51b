"""Comparison of ranks, from partial aggregates that merge over ranks.

Each rank reports a few numbers of its own (`own`). They are merged over the tree like all others. From the result rank
0 finds which rank is slowest, has the largest loss, counted the most non-finite values, or has other weights
(`compare`). This does not need the rows of all ranks in one place.

Replicas are compared by the sums of squares of their layers: equal weights give equal bits. What is merged is their
number, sum, largest and smallest, the last two with their ranks. If one of n values is different, the sum shows which
extreme it is: the sum is (n - 1) * smallest + largest, or smallest + (n - 1) * largest. If several differ it is
neither, and the rank is not known (-1). Of two ranks that diverge, it is the one whose weights jumped.
"""

from __future__ import annotations

from collections.abc import Container

import numpy as np
from numpy.typing import NDArray

from stabwatch.runlog import Accumulator, RecordLayout
from stabwatch.signals.reductions import REPLICA_VALUES

REPLICATED = ("gradient", "group", "weight", "update", "matrix", "matrix_update", "optimizer")
"""Taps of which all ranks have the same values, unless parameters are sharded."""
BUSY_SOURCE = Accumulator("rank_source", "busy", "host")
"""The value of each rank; it is not written to the log."""
BUSY = Accumulator("rank_busy", "", "rank_spread")
LOSS = Accumulator("rank_loss", "", "rank_spread")
NONFINITE = Accumulator("rank_nonfinite", "", "rank_spread")
LOSS_LOW = Accumulator("rank_loss_low", "", "rank_spread")
"""Of minus the loss: its largest is the smallest loss, with its rank."""
SPREADS = (BUSY, LOSS, NONFINITE, LOSS_LOW)
SHARDED = "parameters are sharded over ranks: replicas are compared only where every rank has the whole model"
UNKNOWN = -1
"""In place of a rank that is not known."""
MIN_DIFFERENCE = 1e-9
"""Below this difference two replicas count as equal; used to attribute a difference, not for an alert."""
REPLICA_FIELDS = len(REPLICA_VALUES.fields)
CLEAR = 3.0
"""Of two ranks that diverge, the faulty one is that whose weights moved this many times as far."""

Row = NDArray[np.float64]


class RankHealth:
    """Computes the accumulators that compare ranks. A layer is compared if several ranks measured it in the same step.

    sources: what each rank reports. cells: what rank 0 writes.
    coupled: set by the owner if something keeps replicas equal from the start. Otherwise (an all-reduce written by
        hand, say) a layer is compared from the first step on in which all replicas of it are equal, because ranks may
        train different models.
    """

    def __init__(self, device: RecordLayout) -> None:
        self._busy = _starts(device, [c for c in device.accumulators if c == BUSY_SOURCE])
        self._losses = _starts(device, [c for c in device.accumulators if c.tap in ("loss_source", "token_loss")])
        own = [c for c in device.accumulators if c.tap not in REPLICATED]
        self._nonfinite = _field(device, own, "nonfinite")
        weights = [c for c in device.accumulators if c.tap == "weight" and c.reduction == "moments"]
        self._weights, self._broken = _field(device, weights, "sumsq"), _field(device, weights, "nonfinite")
        self._counts = _field(device, weights, "count")
        self.sources = (*SPREADS, *(Accumulator("replica_values", c.site, "replica_values") for c in weights))
        self.accumulators = (*SPREADS, *(Accumulator("replica", c.site, "replica") for c in weights))
        self.coupled = False
        self._layers = weights
        self._whole = np.ones(len(weights), dtype=bool)
        self._equal_once = np.zeros(len(weights), dtype=bool)
        self._last = np.full((2, len(weights)), np.nan)
        self._odd = np.full(len(weights), float(UNKNOWN))
        self._diverged = np.zeros(len(weights), dtype=bool)

    @property
    def width(self) -> int:
        """Number of fields of `sources`."""
        return 5 * len(SPREADS) + REPLICA_FIELDS * len(self._weights)

    @property
    def absent(self) -> Row:
        """The fields of `cells` in a record of one rank alone."""
        return np.full(5 * len(SPREADS) + 3 * len(self._weights), np.nan)

    def leave_out(self, parts: Container[Accumulator]) -> None:
        """Of these each rank has a part: equal parts (ones, say) are no replicas."""
        self._whole = np.array([c not in parts for c in self._layers], dtype=bool)

    def own(self, rank: int, row: NDArray[np.floating]) -> Row:
        """The fields of `sources`, NaN where this rank measured nothing. row: (fields on the device,), of one rank."""
        x = np.asarray(row, dtype=np.float64)
        busy = x[self._busy + 1].max() if (x[self._busy] > 0).any() else np.nan
        nonfinite, loss = np.nansum(x[self._nonfinite]), self._loss(x)
        spreads = [_spread(rank, value) for value in (busy, loss, nonfinite, -loss)]
        return np.concatenate([*spreads, self._replica(rank, x)])

    def _loss(self, x: Row) -> float:
        """The loss by the best source that this rank has."""
        for start in self._losses:
            if x[start] > 0:
                return float(x[start + 1] / x[start])
        return np.nan

    def _replica(self, rank: int, x: Row) -> Row:
        """(REPLICA_FIELDS * layers,): the `replica_values` of the sums of squares; broken: they are not finite."""
        norms, measured = x[self._weights], x[self._counts] > 0
        broken = (x[self._broken] > 0) | ~np.isfinite(norms)
        one, total, end = np.ones(len(norms)), np.where(broken, 0.0, norms), np.where(broken, np.inf, norms)
        out = np.stack((one, total, broken, end, rank * one, -end, rank * one), axis=1)
        out[~measured] = np.nan
        return out.reshape(-1)

    def compare(self, merged: NDArray[np.floating]) -> Row:
        """The fields of `cells`, NaN where fewer than two ranks measured. merged: those of `sources` over ranks."""
        x = np.asarray(merged, dtype=np.float64)
        spreads = x[: 5 * len(SPREADS)].reshape(-1, 5).copy()
        spreads[~(spreads[:, 0] > 1)] = np.nan
        if spreads[2, 4] > 0 or spreads[2, 2] == 0:  # every rank counted some, or none did
            spreads[2, 3] = UNKNOWN
        replicas = self._compared(x[5 * len(SPREADS) :].reshape(-1, REPLICA_FIELDS))
        return np.concatenate([spreads.reshape(-1), replicas.reshape(-1)])

    def _compared(self, x: Row) -> Row:
        """(layers, 3): number of ranks that measured a layer, the largest difference, and its rank."""
        count, total, broken, high, high_rank, minus_low, low_rank = x.T
        low = -minus_low
        several = count > 1
        out = np.full((len(x), 3), np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            whole = several & (broken == 0)
            differs = whole & (high > low)
            self._equal_once |= whole & ~differs
            place = (total - count * low) / (high - low)  # 1: all but one are low; n - 1: all but one are high
            odd_high, odd_low = differs & (count > 2) & (place < 1.5), differs & (count > 2) & (place > count - 1.5)
            usual = np.where(odd_high, low, np.where(odd_low, high, (high + low) / 2))
            apart = np.maximum(high - usual, usual - low) / np.where(usual > 0, usual, 1.0)
        rank = np.where(odd_high, high_rank, np.where(odd_low, low_rank, UNKNOWN))
        pair = whole & (count == 2)
        rank = np.where(pair, self._odd_one(high, high_rank, low, low_rank, pair), rank)
        mixed = several & (broken > 0) & (broken < count)
        finite_one = mixed & (broken == count - 1)
        rank = np.where(mixed, np.where(broken == 1, high_rank, np.where(finite_one, low_rank, UNKNOWN)), rank)
        apart = np.where(mixed, np.inf, np.where(differs, apart, 0.0))
        shown = several & self._whole & (self._equal_once | self.coupled)
        out[shown] = np.column_stack([count, apart, rank])[shown]
        return out

    def _odd_one(self, high: Row, high_rank: Row, low: Row, low_rank: Row, pair: NDArray[np.bool_]) -> Row:
        """(layers,): of two ranks, the one that jumped when they diverged, while they differ."""
        order = high_rank < low_rank
        norms = np.stack([np.where(order, high, low), np.where(order, low, high)])
        ranks = np.stack([np.minimum(high_rank, low_rank), np.maximum(high_rank, low_rank)])
        with np.errstate(invalid="ignore", divide="ignore"):
            jump = np.nan_to_num(np.abs(norms / self._last - 1), nan=0.0, posinf=np.inf)
            differs = pair & (high - low > MIN_DIFFERENCE * np.abs(high))
        clear = jump.max(axis=0) > CLEAR * jump.min(axis=0)
        jumped = np.where(clear, np.where(jump[0] > jump[1], ranks[0], ranks[1]), UNKNOWN)
        self._odd = np.where(differs, np.where(self._diverged, self._odd, jumped), np.where(pair, UNKNOWN, self._odd))
        self._diverged = np.where(pair, differs, self._diverged)
        self._last = np.where(pair, norms, self._last)
        return self._odd


def _spread(rank: int, value: float) -> Row:
    """The fields of a `rank_spread` of one rank; a value that is not finite is left out."""
    return np.array([1.0, value, value, rank, value]) if np.isfinite(value) else np.full(5, np.nan)


def _starts(layout: RecordLayout, accumulators: list[Accumulator]) -> NDArray[np.int64]:
    return np.array([layout.start(c) for c in accumulators], dtype=np.int64)


def _field(layout: RecordLayout, accumulators: list[Accumulator], name: str) -> NDArray[np.int64]:
    """Columns of one field of some accumulators, of those that have it."""
    fields = {c.reduction: mine for c, mine in zip(layout.accumulators, layout.fields, strict=True)}
    at = {key: i for key, mine in fields.items() for i, (field, _) in enumerate(mine) if field == name}
    return np.array([layout.start(c) + at[c.reduction] for c in accumulators if c.reduction in at], dtype=np.int64)
