"""Reading one segment of a run log while it grows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stabwatch.errors import RunLogError
from stabwatch.runlog.frame import Frame, Numbers, frame_of
from stabwatch.runlog.schema import SCHEMA_VERSION, RecordBatch, RecordLayout
from stabwatch.runlog.writer import arrow_schema

Number = TypeVar("Number", np.int64, np.float64, np.float32)


class UnreadableSegment(RunLogError):
    """A segment that no later attempt can read."""


class Tail:
    """Bytes of a growing file that have not been consumed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0

    def read(self, most: int = -1) -> bytes:
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                return file.read(most)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise RunLogError(f"{self.path} cannot be read: {error.strerror}.") from error


class SegmentTail:
    """The complete records of one segment, as they appear.

    All records of a segment have the same header and the same length, so a damaged one is counted and skipped. A
    shorter one, or one that is all zero, may still be incomplete. Arrow reads the first record; those whose header has
    the same bytes are cut out of the file at the same places.
    """

    def __init__(self, path: Path) -> None:
        self._tail = Tail(path)
        self.layout: RecordLayout | None = None
        self._schema: pa.Schema | None = None
        self._header: pa.Buffer | None = None
        self._frame: Frame | None = None
        self._first = 0
        self.path = path
        self.damaged = 0
        self.torn = 0

    @property
    def offset(self) -> int:
        """Bytes consumed."""
        return self._tail.offset

    def chunks(self, size: int) -> Iterator[RecordBatch]:
        """All present records, in batches of about `size` bytes, or of one record if it is larger."""
        while True:
            before = self.offset
            block = self.poll(size)
            if block is not None:
                yield block
            elif self.offset == before:
                if self.torn < size:
                    return
                size *= 2

    def poll(self, most: int = -1) -> RecordBatch | None:
        """New records from at most `most` bytes, or all."""
        data = self._tail.read(most)
        source = pa.BufferReader(data)
        found: list[Numbers] = []
        done = 0
        while done < len(data):
            intact = self._frame.intact(data, done) if self._frame else 0
            if self._frame and intact:
                found.append(self._frame.numbers(data, done, intact))
                done += intact * self._frame.size
                continue
            source.seek(done)
            try:
                record = self._next(source, data)
            except (pa.ArrowException, EOFError, OSError):
                skipped = self._damaged(data, done)
                if not skipped:
                    break
                self.damaged += 1
                done += skipped
                continue
            done = source.tell()
            if record is not None:
                found.append(record)
            else:
                self._first = self.offset + done
        self._tail.offset += done
        self.torn = len(data) - done
        if not found or self.layout is None:
            return None
        steps, times, rows = map(np.concatenate, zip(*found, strict=True))
        return RecordBatch(self.layout, steps, times, rows)

    def pick(self, count: int, newest: bool = False) -> RecordBatch | None:
        """At most `count` records, evenly from the first to the last, or the newest; None if there is none.

        Only they are read, besides the beginning of the segment at the first call.
        """
        size = 1 << 16
        while self._frame is None:
            if self.poll(size) is None and self.torn < size:
                return None
            size *= 2
        found, frame = [], self._frame
        with open(self.path, "rb") as file:
            there = max(0, file.seek(0, 2) - self._first) // frame.size
            oldest = max(0, there - count) if newest else 0
            for number in np.unique(np.linspace(oldest, there - 1, min(count, there)).astype(int)).tolist():
                file.seek(self._first + number * frame.size)
                data = file.read(frame.size)
                if len(data) == frame.size and frame.intact(data, 0):
                    found.append(frame.numbers(data, 0, 1))
        if not found or self.layout is None:
            return None
        steps, times, rows = map(np.concatenate, zip(*found, strict=True))
        return RecordBatch(self.layout, steps, times, rows)

    def _damaged(self, data: bytes, start: int) -> int:
        """Size of the unreadable record that begins there: 0 if the bytes are fewer than a record, or all zero."""
        size = self._frame.size if self._frame else 0
        record = data[start : start + size]
        return size if len(record) == size and record.count(0) < size else 0

    def _next(self, source: pa.BufferReader, data: bytes) -> Numbers | None:
        """The next record; None for the schema message that the segment begins with."""
        start = source.tell()
        message = pa.ipc.read_message(source)
        if self._schema is None or self.layout is None:
            self.layout, self._schema = _table_of(message, self.path)
            return None
        if self._header is not None and not message.metadata.equals(self._header):
            raise pa.ArrowInvalid("a record whose header differs from the first one's")
        batch = pa.ipc.read_record_batch(message, self._schema)
        batch.validate(full=True)
        columns = (batch.column(0), batch.column(1), batch.column(2).values)
        if self._header is None:
            self._header = message.metadata
            if len(batch) == 1:
                self._frame = frame_of(message.body, batch, data[start : source.tell()])
        steps, times = numbers(columns[0], np.int64), numbers(columns[1], np.float64)
        return steps, times, numbers(columns[2], np.float32).reshape(-1, self.layout.width)


def _table_of(message: pa.Message, path: Path) -> tuple[RecordLayout, pa.Schema]:
    """The record layout of a schema message, and the schema of its records. Raises UnreadableSegment."""
    # Cut out of the header by its length, because pa.ipc.read_schema can crash the process on a damaged header.
    header = message.metadata.to_pybytes()
    start = header.find(b'{"schema":')
    if message.type != "schema" or start < 0:
        raise UnreadableSegment(
            f"{path} is an Arrow stream, but not one of stabwatch: its schema has no `stabwatch` metadata."
        )
    text = header[start : start + int.from_bytes(header[start - 4 : start], "little")]
    try:
        found, layout, schema = _parsed(text)
    except RunLogError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableSegment(f"{path} has a damaged record layout: {type(error).__name__}: {error}.") from error
    if found != SCHEMA_VERSION or layout is None:
        raise UnreadableSegment(f"{path} has schema {found!r}, and this stabwatch reads {SCHEMA_VERSION}.")
    return layout, schema


@lru_cache(maxsize=64)
def _parsed(text: bytes) -> tuple[Any, RecordLayout | None, pa.Schema]:
    """Schema version, layout and schema of records: one for all segments that have the same, as they are large."""
    found = json.loads(text).get("schema")
    if found != SCHEMA_VERSION:
        return found, None, None
    layout = RecordLayout.from_json(text)
    layout.check()
    return found, layout, arrow_schema(layout)


def numbers(array: pa.Array, kind: type[Number]) -> NDArray[Number]:
    """A NumPy view of an array without nulls. `to_numpy` would import pandas, which takes half a second."""
    return np.frombuffer(array.buffers()[1], kind, len(array), array.offset * np.dtype(kind).itemsize)
