"""A loss that jumps together with the data: are they other data, or a few odd batches? What comes after decides."""

from __future__ import annotations

import math

import numpy as np

from stabwatch.alerts.features import DerivedSignal
from stabwatch.alerts.statistics import TINY, Array, median

CHANGED, BACK = 3.0, 2.0
"""Values of `batch_shift_ratio`: the data are other ones, and they are like those before."""
LONGEST = 48
"""Records after a change by which it is decided what it was."""
LATE = 16
"""Steps after a change in which a loss that scatters shows that it has jumped."""
PART = 8
"""Losses whose median stands for a part of the time since the change."""
CLIMBS = 1.25
"""Times the loss just after the change, from which on the change does not explain it."""
FLAT, STILL = 0.97, 24
"""A loss above its first one, of which not even a thirtieth is won back in so many records, is not learned."""
LEARNED = 0.1
"""Share of the rise that the loss wins back where new data are learned."""
ODD = 20.0
"""Shift that odd batches reach: far above that of a sample that is a little different by chance."""
JUMP_Z, JUMP_RISE = 4.0, 0.2
"""A loss has jumped: its robust z-score, and its rise over what was learned."""
GAUGES = (
    DerivedSignal(
        "loss_data_changed",
        "Whether the loss jumped together with the data, and it is not known yet what follows: 1, or 0.",
        scope="run",
    ),
    DerivedSignal(
        "loss_odd_batches",
        "Records with batches unlike those before, and a high loss, if such a stretch has just ended.",
        scope="run",
    ),
)


class DataChange:
    """Holds the alarms of a loss back while the data explain it.

    The stretch ends when the batches are like those before the change: they were odd ones, if they were far off. It
    ends when the loss climbs above where the change has put it, or has won back next to nothing of its rise in 48
    records, or stands still above the first loss of the run: then the change explains nothing, and alarms go on. Else
    the data are other ones, which are learned: the loss is judged again from the change on.
    """

    def __init__(self) -> None:
        self._losses: list[float] = []
        self._changed: int | None = None
        self.since = 0
        """The step from which on the data that explain the loss are other ones."""
        self._level = math.nan
        self._furthest = 0.0
        self._spent = False

    @property
    def holds(self) -> bool:
        """Is it not decided yet?"""
        return bool(self._losses)

    def calm(self, shifts: Array) -> None:
        """Shifts of records in which the data do not change."""
        self._spent = self._spent and bool((shifts >= BACK).all())
        self._changed = None if (shifts < BACK).any() else self._changed

    def observe(
        self, step: int, loss: float, shift: float, level: float, jumped: bool, begun: float = math.inf
    ) -> tuple[float, list[float]]:
        """A loss, the shift of the data, NaN where it is not known, the level of the losses before, and the first one.

        Returns how many records had odd batches, if they just ended, and the losses of new data that are learned.
        """
        back = shift < BACK
        self._spent = self._spent and shift >= BACK
        if back or (shift > CHANGED and self._changed is None):
            self._changed = None if back else step
        if not self.holds:
            if jumped and shift > CHANGED and not self._spent:
                self._losses, self._level, self._furthest = [loss], level, shift
                recent = self._changed is not None and step - self._changed <= LATE
                self.since = self._changed if self._changed is not None and recent else step
            return 0.0, []
        self._losses.append(loss)
        self._furthest = max(self._furthest, shift) if shift == shift else self._furthest
        n = len(self._losses)
        first, last = (median(np.array(part)) for part in (self._losses[:PART], self._losses[-PART:]))
        if back:
            self._losses = []
            return float(n - 1) if self._furthest > ODD else 0.0, []
        climbs = n >= 2 * PART and last > CLIMBS * first > 0
        if not climbs and n < LONGEST:
            return 0.0, []
        losses, self._losses, self._spent = self._losses, [], True
        earlier = median(np.array(losses[-STILL - PART : -STILL] or losses[:1]))
        stands = last >= begun * FLAT and last >= earlier * FLAT
        learned = (first - last) / max(first - self._level, TINY) >= LEARNED and not stands
        return 0.0, losses if learned and not climbs else []
