"""A run log as it came to be: records and events in the order of their times, and the silences between them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np

from stabwatch.alerts import Alert, Engine
from stabwatch.alerts.engine import STALL_SECONDS
from stabwatch.runlog import Block, Event, RunLog

PIECE = 4096
"""Most records in a block: bounds the memory that its values take."""


def timeline(log: RunLog) -> Iterator[Block | Event]:
    """Records, and the start and end events among them; an event comes after the records of its time."""
    events = sorted((e for e in log.poll_events() if e.kind in ("start", "end")), key=lambda e: e.time)
    for block in _pieces(log):
        done = 0
        while events and events[0].time < block.times[-1]:
            cut = int(np.searchsorted(block.times[done:], events[0].time, side="right")) + done
            if cut > done:
                yield part(block, done, cut)
                done = cut
            yield events.pop(0)
        yield part(block, done, len(block))
    yield from events


def part(block: Block, start: int, stop: int) -> Block:
    """Some consecutive records of a block."""
    rows = slice(start, stop)
    return replace(block, steps=block.steps[rows], times=block.times[rows], rows=block.rows[rows])


def _pieces(log: RunLog) -> Iterator[Block]:
    for block in log.stream():
        for start in range(0, len(block), PIECE):
            yield part(block, start, start + PIECE)


def follow(log: RunLog, engine: Engine) -> Iterator[tuple[Block | Event, list[Alert]]]:
    """Lead an engine through a run log as an agent did that was there: what it saw, and the transitions it caused.

    Silences count as they did then, so that a stalled process is reported here too.
    """
    for item in timeline(log):
        for piece in [item] if isinstance(item, Event) else _at_silences(item):
            began = piece.time if isinstance(piece, Event) else float(piece.times[0])
            alerts = engine.tick(math.nextafter(engine.patience, math.inf)) if engine.patience < began else []
            alerts += engine.observe_event(piece) if isinstance(piece, Event) else engine.observe(piece)
            yield piece, alerts


def _at_silences(block: Block) -> Iterator[Block]:
    cuts = np.flatnonzero(np.diff(block.times) > STALL_SECONDS) + 1
    edges = [0, *cuts.tolist(), len(block)]
    return (part(block, start, stop) for start, stop in pairwise(edges))
