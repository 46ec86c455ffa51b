"""A run in bounded memory: a long run is merged over windows of steps, by the merge operators."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import numpy as np

from stabwatch.runlog import Event, RecordBatch, Run
from stabwatch.runlog.attempts import surviving
from stabwatch.runlog.source import Source

MOST = 8192
"""Maximum number of records in memory; a longer log keeps at least about half of that."""
MOST_NUMBERS = 1 << 24
"""Maximum number of values in memory: a long record means fewer records."""


class Downsampled:
    """Accumulates the records of a run. window: steps per merged record.

    A merged record has the first step of its window.
    """

    def __init__(self, window: int = 1, most: int = MOST) -> None:
        self.window = window
        self._most = most
        self._kept: list[RecordBatch] = []

    def add(self, block: RecordBatch) -> None:
        """Add records. If there are too many, all are merged into larger windows."""
        most = max(64, min(self._most, MOST_NUMBERS // max(block.layout.width, 1)))
        self._kept.append(merged(block, self.window))
        while sum(map(len, self._kept)) > most:
            self.window *= 2
            self._kept = self._merged()

    def run(self, log: Source, events: tuple[Event, ...]) -> Run:
        """The merged records."""
        return Run(
            log.path, log.meta, tuple(self._merged()), events, log.damaged_records, log.torn_bytes, log.bad_event_lines,
            tuple(log.unreadable.values()),
        )  # fmt: skip

    def _merged(self) -> list[RecordBatch]:
        """Batches of one layout in a row are one batch, so that no window is split."""
        runs = (list(blocks) for _, blocks in groupby(self._kept, lambda block: id(block.layout)))
        return [merged(_joined(blocks), self.window) for blocks in runs]


def load(
    log: Source, progress: Callable[[Source], None] | None = None, window: int = 1, most: int = MOST
) -> tuple[Run, int]:
    """A run, and its steps per record: 1 unless there are more than `most` records. Raises RunLogError.

    Records that a later attempt of the run superseded are left out.

    window: merge at least this many steps.
    """
    thinned = Downsampled(window, most)
    for block in surviving(log):
        thinned.add(block)
        if progress is not None:
            progress(log)
    return thinned.run(log, tuple(log.poll_events())), thinned.window


def merged(block: RecordBatch, window: int) -> RecordBatch:
    """A batch with the records of each window of steps merged into one."""
    if window == 1 or not len(block):
        return RecordBatch(block.layout, block.steps, block.times, block.rows)  # without values computed before
    of = block.steps // window
    starts = np.flatnonzero(np.diff(of, prepend=of[0] - 1))
    rows = block.layout.operators.merge_groups(block.rows, starts).astype(np.float32)
    return RecordBatch(block.layout, of[starts] * window, block.times[starts], rows)


def _joined(blocks: list[RecordBatch]) -> RecordBatch:
    return RecordBatch(
        blocks[0].layout,
        np.concatenate([block.steps for block in blocks]),
        np.concatenate([block.times for block in blocks]),
        np.concatenate([block.rows for block in blocks]),
    )
