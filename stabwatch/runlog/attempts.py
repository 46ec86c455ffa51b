"""The attempts of a run: each start of a training process that wrote to its folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stabwatch.runlog.reader import Run, RunLog
from stabwatch.runlog.schema import Event, RecordBatch
from stabwatch.runlog.source import Source


@dataclass(frozen=True)
class Attempt:
    """One attempt. began: time of its start event. first, last: steps of its records, None without one.

    ended: reason of its end event; None if it has none.
    """

    number: int
    began: float
    first: int | None
    last: int | None
    ended: str | None


def attempts(path: Path, events: Sequence[Event]) -> tuple[Attempt, ...]:
    """The attempts of a run folder, in order. Its records are read only if there are several. Raises RunLogError."""
    starts = [i for i, event in enumerate(events) if event.kind == "start"]
    extents: dict[int, tuple[int, int]] = {}
    if len(starts) > 1:
        began = np.array([events[i].time for i in starts])
        for block in RunLog(path).stream():
            _extend(extents, np.searchsorted(began, block.times, side="right") - 1, block.steps)
    found = []
    for number, (start, stop) in enumerate(pairwise([*starts, len(events)])):
        first, last = extents.get(number, (None, None))
        found.append(Attempt(number + 1, events[start].time, first, last, _reason(events[start:stop])))
    return tuple(found)


def _extend(extents: dict[int, tuple[int, int]], numbers: NDArray[np.int64], steps: NDArray[np.int64]) -> None:
    for number in np.unique(numbers).tolist():
        mine = steps[numbers == number]
        first, _ = extents.get(number, (int(mine[0]), 0))
        extents[number] = (first, int(mine[-1]))


def _reason(events: Iterable[Event]) -> str | None:
    end = next((e for e in events if e.kind == "end"), None)
    return None if end is None else str(end.data.get("reason", "unknown"))


def kept(block: RecordBatch, found: Iterable[Attempt]) -> RecordBatch:
    """A batch without the records that a later attempt superseded: it began at their step or before it."""
    keep = np.ones(len(block), dtype=bool)
    for attempt in found:
        if attempt.first is not None:
            keep &= (block.times >= attempt.began) | (block.steps < attempt.first)
    if keep.all():
        return block
    return RecordBatch(block.layout, block.steps[keep], block.times[keep], block.rows[keep])


def read_run(path: str | Path) -> Run:
    """Read a whole run folder, without the records that a later attempt superseded. Raises RunLogError."""
    log = RunLog(path)
    events = tuple(log.poll_events())
    found = attempts(log.path, events)
    whole = log.poll()
    blocks = [batch for batch in (kept(batch, found) for batch in whole) if len(batch)]
    return Run(
        log.path, log.meta, tuple(blocks), events, log.damaged_records, log.torn_bytes, log.bad_event_lines,
        tuple(log.unreadable.values()), sum(map(len, whole)) - sum(map(len, blocks)),
    )  # fmt: skip


def surviving(log: Source, events: Sequence[Event] | None = None) -> Iterator[RecordBatch]:
    """The records of a run folder without those that a later attempt superseded; of another log, all of them.

    events: those of the run, if they have been read already. Raises RunLogError.
    """
    found: tuple[Attempt, ...] = ()
    if isinstance(log, RunLog):
        found = attempts(log.path, RunLog(log.path).poll_events() if events is None else events)
    return (kept(batch, found) for batch in log.stream())


@dataclass(frozen=True)
class Surviving:
    """A log whose `stream` gives the records that no later attempt superseded."""

    log: Source
    events: Sequence[Event]

    def stream(self) -> Iterator[RecordBatch]:
        """The records, in batches."""
        return surviving(self.log, self.events)
