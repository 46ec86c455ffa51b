"""A run log in order of time: records, events, and the silences between them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from itertools import pairwise
from typing import Protocol

import numpy as np

from stabwatch.alerts import Alert, Engine
from stabwatch.alerts.engine import ENGINE_EVENTS, STALL_SECONDS
from stabwatch.runlog import Event, RecordBatch
from stabwatch.runlog.source import BATCH_RECORDS, record_slice


class Streamed(Protocol):
    """What has records."""

    def stream(self) -> Iterator[RecordBatch]:
        """The records, in batches."""


def timeline(
    log: Streamed, events: Iterable[Event], kinds: Collection[str] | None = ENGINE_EVENTS
) -> Iterator[RecordBatch | Event]:
    """Records and events in order of time; an event follows the records of the same time.

    kinds: of the events to keep; None for all. Announced changes come first, because an engine needs them in advance.
    A batch ends before a silence.
    """
    kept = sorted((e for e in events if kinds is None or e.kind in kinds), key=lambda e: e.time)
    yield from (e for e in kept if e.kind == "change")
    events = [e for e in kept if e.kind != "change"]
    for block in _pieces(log):
        done = 0
        while events and events[0].time < block.times[-1]:
            cut = int(np.searchsorted(block.times[done:], events[0].time, side="right")) + done
            if cut > done:
                yield record_slice(block, done, cut)
                done = cut
            yield events.pop(0)
        yield record_slice(block, done, len(block))
    yield from events


def begin(item: RecordBatch | Event) -> float:
    """The time of an event, or of the first record."""
    return item.time if isinstance(item, Event) else float(item.times[0])


def lead(engine: Engine, item: RecordBatch | Event) -> list[Alert]:
    """Pass the next item to an engine. A silence before it counts as it would for a live agent."""
    silent = engine.patience < begin(item)
    alerts = engine.tick(math.nextafter(engine.patience, math.inf)) if silent else []
    return alerts + (engine.observe_event(item) if isinstance(item, Event) else engine.observe(item))


def _pieces(log: Streamed) -> Iterator[RecordBatch]:
    for block in log.stream():
        with np.errstate(over="ignore", invalid="ignore"):  # the times of another program's log are any numbers
            apart = np.diff(block.times) > STALL_SECONDS
        cuts = {*(np.flatnonzero(apart) + 1).tolist(), *range(0, len(block), BATCH_RECORDS), len(block)}
        for start, stop in pairwise(sorted(cuts)):
            yield record_slice(block, start, stop)
