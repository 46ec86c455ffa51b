"""Sources of records: a run folder, or a run from another trainer's log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from stabwatch.runlog.schema import Event, Meta, RecordBatch, RecordLayout

BATCH_RECORDS = 4096
"""Maximum number of records in a batch, which bounds its memory."""


class Source(Protocol):
    """The interface of a run log, which `RunLog` implements."""

    meta: Meta
    bad_event_lines: int
    unreadable: dict[Path, str]
    """What is wrong with each file that could not be read."""

    @property
    def damaged_records(self) -> int:
        """Records that could not be read, so far."""

    @property
    def torn_bytes(self) -> int:
        """Bytes of incomplete records at the end."""

    @property
    def path(self) -> Path:
        """Its path."""

    @property
    def layouts(self) -> list[RecordLayout]:
        """The layouts of its records."""

    @property
    def position(self) -> int:
        """How much has been read, out of `size`."""

    @property
    def size(self) -> int:
        """The total, in the units of `position`."""

    def stream(self) -> Iterator[RecordBatch]:
        """The records, in batches."""

    def poll_events(self) -> list[Event]:
        """All events. Call it once."""


def record_slice(block: RecordBatch, start: int, stop: int) -> RecordBatch:
    """Some consecutive records of a batch."""
    rows = slice(start, stop)
    return replace(block, steps=block.steps[rows], times=block.times[rows], rows=block.rows[rows])
