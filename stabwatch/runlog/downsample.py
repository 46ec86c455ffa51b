"""A run in memory, however long it was: merged over windows of steps, by the merge law, when records are too many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from stabwatch.runlog import Event, RecordBatch, Run
from stabwatch.runlog.source import Source

MOST = 8192
"""Records in memory at most; about half of them at least, where there are more in the log."""
MOST_NUMBERS = 1 << 24
"""Partials in memory at most: fewer records where a record is long."""


class Downsampled:
    """Takes the records of a run, block by block. window: steps that a record of it stands for.

    A merged record bears the first step of its window.
    """

    def __init__(self, window: int = 1, most: int = MOST) -> None:
        self.window = window
        self._most = most
        self._kept: list[RecordBatch] = []

    def add(self, block: RecordBatch) -> None:
        """More records; those before are merged further where they have become too many."""
        most = max(64, min(self._most, MOST_NUMBERS // max(block.table.width, 1)))
        self._kept = _appended(self._kept, merged(block, self.window))
        while sum(map(len, self._kept)) > most:
            self.window *= 2
            self._kept = [merged(old, self.window) for old in self._kept]

    def run(self, log: Source, events: tuple[Event, ...]) -> Run:
        """What was kept."""
        kept = tuple(merged(block, self.window) for block in self._kept)
        return Run(log.path, log.meta, kept, events, log.damaged_records, log.torn_bytes, log.bad_event_lines)


def load(
    log: Source, progress: Callable[[Source], None] | None = None, window: int = 1, most: int = MOST
) -> tuple[Run, int]:
    """A run, and the steps that a record of it stands for: 1 unless there are more than `most`. Raises RunLogError.

    window: merge at least this many steps.
    """
    thinned = Downsampled(window, most)
    for block in log.stream():
        thinned.add(block)
        if progress is not None:
            progress(log)
    return thinned.run(log, tuple(log.poll_events())), thinned.window


def merged(block: RecordBatch, window: int) -> RecordBatch:
    """A block with the records of each window of steps merged into one."""
    if window == 1 or not len(block):
        return block
    of = block.steps // window
    starts = np.flatnonzero(np.diff(of, prepend=of[0] - 1))
    rows = block.table.operators.merge_groups(block.rows, starts).astype(np.float32)
    return RecordBatch(block.table, of[starts] * window, block.times[starts], rows)


def _appended(kept: list[RecordBatch], block: RecordBatch) -> list[RecordBatch]:
    """Pieces of one layout as one block, so that a window that a piece cuts in two becomes whole."""
    if not kept or kept[-1].table is not block.table:
        return [*kept, block]
    return [*kept[:-1], _joined(kept[-1], block)]


def _joined(one: RecordBatch, other: RecordBatch) -> RecordBatch:
    return replace(
        one,
        steps=np.concatenate([one.steps, other.steps]),
        times=np.concatenate([one.times, other.times]),
        rows=np.concatenate([one.rows, other.rows]),
    )
