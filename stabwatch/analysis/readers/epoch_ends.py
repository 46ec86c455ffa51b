"""Records that are each the end of an epoch: of its bar, or the only ones of it. Then epochs count, not steps."""

from __future__ import annotations

import math


class EpochEnds:
    """What is known of the records so far."""

    def __init__(self) -> None:
        self.at_end = False
        """Whether the last step is the end of a bar."""
        self._epochs: dict[int, int | None] | None = {}
        """Epoch by step; None if a record is not the end of one."""
        self._only: int | None = None
        self._bars: dict[str, float] | None = {}
        """The last values, if each record is the end of a bar, and no epoch is told."""

    @property
    def possible(self) -> bool:
        """Whether each record so far is the end of an epoch."""
        return self._epochs is not None

    def draw(self, values: dict[str, float], epoch: int | None) -> None:
        """A step with values, at which a bar is drawn or not."""
        self._bars = values if self.at_end and epoch is None and self._bars is not None else None

    def is_another(self, values: dict[str, float]) -> bool:
        """Whether the end of a bar is not the one before it, which is drawn again with the same values."""
        shared = [(before, values[key]) for key, before in (self._bars or {}).items() if key in values]
        return any(a != b and not (math.isnan(a) and math.isnan(b)) for a, b in shared)

    def add(self, step: int, whole_step: int, epoch: int | None, *, ends: bool, told: bool) -> None:
        """A record that tells how a training goes.

        step: as it is printed; whole_step: over all epochs. ends: it ends a bar. told: its line has the epoch.
        """
        whole = ends or (told and self._only in (None, step))
        self._only = step
        if self._epochs is None or not whole or (epoch is None and self._epochs and not self._bars):
            self._epochs = None
            return
        self._epochs[whole_step] = epoch

    def epochs(self) -> dict[int, int]:
        """Epochs by step, empty if they do not count.

        The first may be missing, where an excerpt begins with a record: it is the one before. If all are, bars count.
        """
        ends = self._epochs or {}
        if self._bars:
            return {step: i for i, step in enumerate(ends, 1)}
        first, rest = next(iter(ends), None), [epoch for epoch in ends.values() if epoch is not None]
        if first is not None and ends[first] is None and rest and rest[0] > 0:
            ends = {**ends, first: rest[0] - 1}
        return {step: epoch for step, epoch in ends.items() if epoch is not None}
