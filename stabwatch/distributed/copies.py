"""Data that several ranks are given counts once.

The ranks of a tensor-parallel group are given the same batch. So each of them measures the same loss, labels and
residual stream, and each has a share of what lies inside of a layer that is split. Which is which is not known from
modules and placements: a norm may see all tokens or a share of them. So the ranks of one such group report what they
have measured to rank 0, each accumulator a few times. Where they are equal, sums over all ranks are divided by the size
of the group. Means, ratios and extremes are the same either way.

A report is sent before the row of the same step, on the same way. So rank 0 has all of them when the row is complete.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stabwatch.distributed.layout import MergeLayout, Partial
from stabwatch.distributed.tree import RankSet

REPORTS = 3
"""Times that a rank reports one accumulator: that of a layer which begins with zeros is equal on all ranks at first."""
MOST_OPEN = 32
"""Steps of which some ranks have reported, and others not yet."""


class Copies:
    """What one rank reports, and on rank 0 what follows from the reports.

    layout: of the rows. group: the ranks that are given the same data as this one; none where there are no others, or
    where it is another group that reports.
    """

    def __init__(self, layout: MergeLayout, group: tuple[int, ...]) -> None:
        self._layout = layout
        self.group = group
        self._left = np.where(layout.data, REPORTS, 0)
        self._open: dict[tuple[int, tuple[int, ...]], list[Partial]] = {}
        self._apart = np.zeros(len(layout.data), dtype=bool)
        self._times = np.ones(len(layout.data))

    def report(self, partial: Partial) -> Partial | None:
        """Of what this rank measured in a step, what is to be reported; None for nothing."""
        if not self.group:
            return None
        due = (self._left > 0) & self._layout.present(partial)
        self._left[due] -= 1
        return self._layout.only(partial, due) if due.any() else None

    def take(self, step: int, group: tuple[int, ...], partial: Partial) -> None:
        """On rank 0: one rank of a group has reported."""
        found = self._open.setdefault((step, group), [])
        found.append(partial)
        if len(found) == len(group):
            del self._open[step, group]
            self._compare(found)
        while len(self._open) > MOST_OPEN:
            del self._open[next(iter(self._open))]

    def _compare(self, found: list[Partial]) -> None:
        first, *others = found
        several = np.logical_and.reduce([self._layout.present(partial) for partial in found])
        equal = np.logical_and.reduce([self._layout.equal(first, other) for other in others])
        self._apart |= several & ~equal
        self._times = np.where(several & equal, len(found), self._times)

    def times(self, ranks: RankSet, world: int) -> NDArray[np.float64] | None:
        """(accumulators,): how many times the same is in a row over some ranks; None if that is once for all."""
        times = np.where(self._apart, 1.0, self._times)
        return times if ranks == ((0, world),) and (times > 1).any() else None
