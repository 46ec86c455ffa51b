"""Where records come from: a run folder, or a run in another trainer's log that looks like one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from stabwatch.runlog import Event, Meta, RecordBatch, RecordLayout

BATCH_RECORDS = 4096
"""Most records in a block: bounds the memory that its values take."""


class Source(Protocol):
    """What is asked of a run log; `RunLog` has it."""

    meta: Meta
    bad_event_lines: int

    @property
    def damaged_records(self) -> int:
        """Records that could not be read, so far."""

    @property
    def torn_bytes(self) -> int:
        """What was no whole record at the end."""

    @property
    def path(self) -> Path:
        """Where it lies."""

    @property
    def tables(self) -> list[RecordLayout]:
        """The layouts of its records."""

    @property
    def position(self) -> int:
        """How much of it has been read, of `size`."""

    @property
    def size(self) -> int:
        """All of it."""

    def stream(self) -> Iterator[RecordBatch]:
        """The records, in pieces."""

    def poll_events(self) -> list[Event]:
        """The events; at once, and once."""


def record_slice(block: RecordBatch, start: int, stop: int) -> RecordBatch:
    """Some consecutive records of a block."""
    rows = slice(start, stop)
    return replace(block, steps=block.steps[rows], times=block.times[rows], rows=block.rows[rows])
