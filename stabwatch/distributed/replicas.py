"""Are replicas equal, how far are they apart if not, and which rank has left the others?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.float64]
Bools = NDArray[np.bool_]

UNKNOWN = -1
"""In place of a rank that is not known."""
ROUNDING = 1e-6
"""Replicas that are as close as this may differ by rounding alone."""
LEAST = 2.0**-24
"""The difference that is told of bits that differ where sums of squares do not show it."""
CHANGES = 3
"""Replicas that have changed so often and were equal each time are kept equal to the bit."""
LOOKS = 4
"""Comparisons after which weights that were never equal are said to be that."""
ALONE = -2
"""In place of a rank where all step on their own, as it seems."""
LONGEST = 1024
"""Steps that ranks are said to step on their own before it counts as a mistake that nothing makes them equal: where as
many collectives are called in each of them, so that none can be an average that was not looked at."""
BETWEEN = 16
"""Steps between two comparisons, at most."""
CLEAR = 3.0
"""Of two ranks that diverge, the faulty one is that whose weights moved this many times as far."""


class Values:
    """The merged `replica_values` of one step, by place, and what follows from them alone.

    high, low: checksums, with their ranks. largest, smallest: sums of squares, with theirs.
    """

    def __init__(self, fields: Row) -> None:
        self.count, total, self.broken, self.high, self.high_rank, low, self.low_rank = fields.T[:7]
        self.largest, self.largest_rank, smallest, self.smallest_rank = fields.T[7:]
        self.low, self.smallest = -low, -smallest
        count = self.count
        self.several = count > 1
        with np.errstate(invalid="ignore"):
            self.differs: Bools = self.several & (self.high > self.low)
            self.equal: Bools = self.several & ~self.differs
            step, over = self.high - self.low, total - count * self.low  # of one: it; of all but one: n - 1 times it
            self.one_high = self.differs & (count > 2) & (over == step)
            self.one_low = self.differs & (count > 2) & (over == (count - 1) * step) & ~self.one_high
            self.pair = self.several & (count == 2)
        self.odd = np.where(self.one_high, self.high_rank, np.where(self.one_low, self.low_rank, float(UNKNOWN)))

    @property
    def apart(self) -> Row:
        """How far the sums of squares are apart, relative to that of the others; if unclear, half the range."""
        with np.errstate(invalid="ignore", divide="ignore"):
            above, below = self.odd == self.largest_rank, self.odd == self.smallest_rank
            middle = (self.largest + self.smallest) / 2
            usual = np.where(
                self.odd < 0, middle, np.where(above, self.smallest, np.where(below, self.largest, middle))
            )
            return np.maximum(self.largest - usual, usual - self.smallest) / np.where(usual > 0, usual, 1.0)


class ReplicaPast:
    """Compares step after step, and knows what was before. buffers: which places are buffers, and no weights.

    Weights differ by rounding alone where equal arithmetic is done on other devices, so that a small difference is told
    only of those that have changed and stayed equal to the bit, and of those that do not change (frozen ones). A buffer
    may belong to its rank. It counts as shared if it has changed and stayed equal, or if it does not change and is
    another one on some rank.

    Where most weights differ at once (and nothing is known to keep them equal), ranks may step on their own, and
    average their weights now and then (local SGD). Their rank is `ALONE` then, but not where each step has as many
    collectives as one that began with equal weights. Once most weights are equal again, that is known (`averaged`):
    from then on, steps in which most differ are not compared. Weights that no average made equal belong to their rank.
    """

    def __init__(self, buffers: Sequence[bool]) -> None:
        self._buffers = np.array(buffers, dtype=bool)
        n = len(buffers)
        self._common = np.full(n, np.nan)
        """The checksum that all ranks had when they were equal last."""
        self._changes = np.zeros(n, dtype=np.int64)
        self._equal_once = np.zeros(n, dtype=bool)
        self._waiting = np.full((n, 2), np.nan)
        self._last = np.full((2, n), np.nan)
        self._odd = np.full(n, float(UNKNOWN))
        self._diverged = np.zeros(n, dtype=bool)
        self._looks = 0
        self.averaged = False
        self._first = np.full(n, np.nan)
        """The checksum at the first comparison."""
        self._least = np.inf
        """Fewest collectives of a step that began with equal weights, after they had changed."""
        self._alone, self._own = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
        self._ranks = np.zeros(n)
        self._equal_at, self._longest = 0, LONGEST

    @property
    def never_equal(self) -> bool:
        """Were no weights equal on all ranks in any of several comparisons, but for some that begin with one value?"""
        weights = ~self._buffers
        return self._looks >= LOOKS and bool(weights.any()) and not self._shared(weights).any()

    def _shared(self, weights: Bools) -> Bools:
        """Of these weights, those that were equal once: where most were not, those that have changed and were equal."""
        once = weights & self._equal_once
        return once & (self._changes > 0) if 2 * once.sum() < weights.sum() else once

    def compare(self, fields: Row, coupled: bool, step: int, collectives: Sequence[int]) -> Row:
        """(places, 3): number of ranks that measured a place, the largest difference, and its rank.

        fields: (places, fields), the merged `replica_values`. coupled: something keeps weights equal from the start.
        collectives: how many were called in the last steps, this one the last, as far as that is known.
        """
        v = Values(fields)
        self._looks += bool(v.several.any())
        kept = self._changes >= CHANGES
        told, still = self._told(v, coupled, kept)
        rank = np.where(v.pair, self._of_pair(v), v.odd)
        apart = np.where(v.differs, v.apart, 0.0)
        close = v.differs & ~(apart > ROUNDING)
        apart = np.where(
            close, np.where(self._buffers | ((kept | still) & coupled), np.maximum(apart, LEAST), 0.0), apart
        )
        mixed = v.several & (v.broken > 0) & (v.broken < v.count)
        only = np.where(v.broken == v.count - 1, v.smallest_rank, float(UNKNOWN))
        rank = np.where(mixed, np.where(v.broken == 1, v.largest_rank, only), np.where(apart > 0, rank, UNKNOWN))
        apart = np.where(mixed, np.inf, np.where(v.broken > 0, 0.0, apart))
        unknown = not coupled and not (self._changes >= CHANGES).any()
        found, told = self._of_local_steps(v, told, np.where(told, apart, 0.0), rank, step, collectives, unknown)
        rank = rank if coupled else found
        self._remember(v)
        out = np.full((len(fields), 3), np.nan)
        out[told] = np.column_stack([v.count, apart, rank])[told]
        return out

    def _of_local_steps(
        self, v: Values, told: Bools, apart: Row, rank: Row, step: int, collectives: Sequence[int], unknown: bool
    ) -> tuple[Row, Bools]:
        """The ranks, and which places are told, where ranks may step on their own.

        unknown: that they do is likely if nothing is known of collectives.
        """
        weights = v.several & ~self._buffers
        if not weights.any():
            return rank, told
        differs = weights & v.differs & (apart > 0)
        self._first = np.where(np.isnan(self._first) & weights, v.high, self._first)
        moved = weights & (v.differs | (v.high != self._first))
        most = bool(2 * differs.sum() > moved.sum())
        again = self._alone & v.equal & (v.count >= self._ranks)
        if 2 * again.sum() > self._alone.sum():
            self.averaged, self._own = True, self._own | (self._alone & v.differs)
            self._longest = max(self._longest, 4 * (step - self._equal_at))
        if not most:
            self._equal_at = step
            if moved.any() and collectives:
                self._least = min(self._least, collectives[-1])
        steady = not collectives or min(collectives) == max(collectives)
        waits = most and not (steady and step - self._equal_at >= self._longest)
        fewest = min(collectives[-BETWEEN - 1 :], default=None)
        alone = unknown if fewest is None else fewest < max(1.0, self._least)
        self._alone, self._ranks = differs & (waits and (alone or self.averaged)), v.count
        if self.averaged:
            return rank, told & ~(weights & (self._own | waits))
        return np.where(self._alone, float(ALONE), rank), told

    def _told(self, v: Values, coupled: bool, kept: Bools) -> tuple[Bools, Bools]:
        """Places of which anything is told, and those that differ and have not changed since the look before."""
        self._equal_once |= v.equal & (v.broken == 0)
        weights = v.several & (coupled | self._shared(v.several & ~self._buffers))
        now = np.column_stack([v.high, v.low])
        same = (self._waiting == now).all(axis=1)
        waited = ~np.isnan(self._waiting).any(axis=1)
        moved = self._buffers & v.differs & ~kept & waited & ~same
        self._equal_once[moved] = False  # it has gone on by itself: it belongs to its rank
        self._waiting[v.differs] = now[v.differs]
        self._waiting[v.equal] = np.nan
        buffers = v.several & self._equal_once & (v.equal | kept | same)
        return np.where(self._buffers, buffers, weights), same

    def _of_pair(self, v: Values) -> Row:
        """Of two ranks, the one that has left the value that both had; else the one that jumped when they diverged."""
        left = np.where(v.low == self._common, v.high_rank, np.where(v.high == self._common, v.low_rank, UNKNOWN))
        return np.where(left >= 0, left, self._jumped(v))

    def _jumped(self, v: Values) -> Row:
        order = v.largest_rank < v.smallest_rank
        norms = np.stack([np.where(order, v.largest, v.smallest), np.where(order, v.smallest, v.largest)])
        ranks = np.stack([np.minimum(v.largest_rank, v.smallest_rank), np.maximum(v.largest_rank, v.smallest_rank)])
        with np.errstate(invalid="ignore", divide="ignore"):
            jump = np.nan_to_num(np.abs(norms / self._last - 1), nan=0.0, posinf=np.inf)
        clear = (jump.max(axis=0) > CLEAR * jump.min(axis=0)) & (jump.max(axis=0) > ROUNDING)
        jumped = np.where(clear, np.where(jump[0] > jump[1], ranks[0], ranks[1]), float(UNKNOWN))
        begins = v.pair & v.differs & ~self._diverged
        self._odd = np.where(begins, jumped, np.where(v.pair & ~v.differs, float(UNKNOWN), self._odd))
        self._diverged = np.where(v.pair, v.differs, self._diverged)
        self._last = np.where(v.pair, norms, self._last)
        return self._odd

    def _remember(self, v: Values) -> None:
        self._changes += v.equal & ~np.isnan(self._common) & (v.high != self._common)
        self._common = np.where(v.equal, v.high, self._common)
