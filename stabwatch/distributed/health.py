"""Comparison of ranks, from partial aggregates that merge over ranks.

Each rank reports a few numbers of its own (`own`). They are merged over the tree like all others. From the result rank
0 finds which rank is slowest, has the largest loss, counted the most non-finite values, or has other weights
(`compare`). This does not need the rows of all ranks in one place.

Replicas are compared by checksums of their bits, layer by layer and buffer by buffer. What is merged is their number,
sum, largest and smallest, the last two with their ranks. If one of n values is different, the sum shows which
extreme it is: the sum is (n - 1) * smallest + largest, or smallest + (n - 1) * largest. If several differ it is
neither, and the rank is not known (-1). Of two ranks that diverge, it is the one that has left the value that both had,
or else the one whose weights jumped. How far they are apart is taken from sums of squares.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stabwatch.distributed.layout import CHECKS
from stabwatch.distributed.replicas import LONGEST, UNKNOWN, ReplicaPast, Row
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
LOSS_ALIKE = Accumulator("rank_loss", "", "host")
"""Whether the losses of all ranks are the same, where each rank should have data of its own, and has not."""
DATA = Accumulator("rank_data", "", "rank_spread")
"""Of the sum of squares of all activations, which differ where the data do; it is not written to the log."""
SPREADS = (BUSY, LOSS, NONFINITE, LOSS_LOW)
OWN = (*SPREADS, DATA)
SHARDED = "parameters are sharded over ranks: only those that every rank has whole are compared, and buffers"
REPLICA_FIELDS = len(REPLICA_VALUES.fields)


class RankHealth:
    """Computes the accumulators that compare ranks. A layer is compared if several ranks measured it in the same step.

    sources: what each rank reports. cells: what rank 0 writes. spent: of the row of a rank, the counts of what only
    this looks at. replicas: whether the ranks should have the same weights.
    own_data: set by the owner if each rank should be given data of its own.
    collectives: how many the first rank has called, by step; filled by the owner.
    coupled: set by the owner if something keeps replicas equal from the start. Otherwise (an all-reduce written by
        hand, say) a layer is compared from the first step on in which all replicas of it are equal, because ranks may
        train different models.
    """

    def __init__(self, device: RecordLayout) -> None:
        self._busy = _starts(device, [c for c in device.accumulators if c == BUSY_SOURCE])
        self._losses = _starts(device, [c for c in device.accumulators if c.tap in ("loss_source", "token_loss")])
        own = [c for c in device.accumulators if c.tap not in (*REPLICATED, *CHECKS)]
        self._nonfinite = _field(device, own, "nonfinite")
        outputs = [c for c in device.accumulators if c.tap == "activation"]
        self._measured, self._activations = _starts(device, outputs), _field(device, outputs, "sumsq")
        self._data_differ = False  # when activations were last compared; a loss made of gathered outputs is one on all
        checks = [c for c in device.accumulators if c.tap in CHECKS]
        self.spent = _starts(device, checks)
        self.sources = (*OWN, *(Accumulator("replica_values", c.site, "replica_values") for c in checks))
        self.accumulators = (*SPREADS, LOSS_ALIKE, *(Accumulator("replica", c.site, "replica") for c in checks))
        self.coupled, self.replicas, self.own_data = False, True, False
        self.collectives: dict[int, int] = {}
        self._past = ReplicaPast([c.tap == "buffer_checksum" for c in checks])

    @property
    def width(self) -> int:
        """Number of fields of `sources`."""
        return 5 * len(OWN) + REPLICA_FIELDS * len(self.spent)

    @property
    def never_equal(self) -> bool:
        """Were replicas not compared, as they were never equal?"""
        return self.replicas and not self.coupled and self._past.never_equal

    @property
    def averaged(self) -> bool:
        """Do ranks step on their own, and average their weights now and then?"""
        return self._past.averaged

    @property
    def absent(self) -> Row:
        """The fields of `cells` in a record of one rank alone."""
        return np.full(5 * len(SPREADS) + 2 + 3 * len(self.spent), np.nan)

    def own(self, rank: int, row: NDArray[np.floating]) -> Row:
        """The fields of `sources`, NaN where this rank measured nothing. row: (fields on the device,), of one rank."""
        x = np.asarray(row, dtype=np.float64)
        busy = x[self._busy + 1].max() if (x[self._busy] > 0).any() else np.nan
        nonfinite, loss = np.nansum(x[self._nonfinite]), self._loss(x)
        measured = x[self._measured] > 0
        seen = x[self._activations][measured].sum() if measured.any() else np.nan
        spreads = [_spread(rank, value) for value in (busy, loss, nonfinite, -loss, seen)]
        return np.concatenate([*spreads, self._replica(rank, x)])

    def _loss(self, x: Row) -> float:
        """The loss by the best source that this rank has."""
        for start in self._losses:
            if x[start] > 0:
                return float(x[start + 1] / x[start])
        return np.nan

    def _replica(self, rank: int, x: Row) -> Row:
        """(REPLICA_FIELDS * places,): the `replica_values` of one rank; broken: its numbers are not finite."""
        count, checksum, squares, nonfinite = (x[self.spent + i] for i in range(4))
        broken = (nonfinite > 0) | ~np.isfinite(squares)
        end, one = np.where(broken, np.inf, squares), np.ones(len(count))
        ends = (checksum, rank * one, -checksum, rank * one, end, rank * one, -end, rank * one)
        out = np.stack((one, checksum, broken, *ends), axis=1)
        out[~(count > 0) | (not self.replicas)] = np.nan
        return out.reshape(-1)

    def compare(self, merged: NDArray[np.floating], step: int) -> Row:
        """The fields of `cells`, NaN where fewer than two ranks measured. merged: those of `sources` over ranks."""
        x = np.asarray(merged, dtype=np.float64)
        spreads = x[: 5 * len(OWN)].reshape(-1, 5).copy()
        spreads[~(spreads[:, 0] > 1)] = np.nan
        *_, data = spreads
        if np.isfinite(data).all():
            self._data_differ = bool(data[2] != data[4])
        spreads = spreads[: len(SPREADS)]
        if spreads[2, 4] > 0 or spreads[2, 2] == 0:  # every rank counted some, or none did
            spreads[2, 3] = UNKNOWN
        values = x[5 * len(OWN) :].reshape(-1, REPLICA_FIELDS)
        collectives = [self.collectives[i] for i in range(step - LONGEST, step + 1) if i in self.collectives]
        past = self._past.compare(values, self.coupled, step, collectives).reshape(-1)
        return np.concatenate([spreads.reshape(-1), self._alike(spreads[SPREADS.index(LOSS)]), past])

    def _alike(self, losses: Row) -> Row:
        """The fields of `LOSS_ALIKE`. losses: those of `LOSS`."""
        count, _, highest, _, lowest = losses
        alike = highest == lowest and not self._data_differ
        return np.array([1.0, alike]) if self.own_data and count > 1 else np.full(2, np.nan)


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
