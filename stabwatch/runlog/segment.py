"""Reading one segment of a run log while it grows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from stabwatch.errors import RunLogError
from stabwatch.runlog.folder import columns
from stabwatch.runlog.frame import Frame, Frames, frame_of
from stabwatch.runlog.plain_file import plain_file
from stabwatch.runlog.schema import FIXED_WIDTH, READABLE, READABLE_VERSIONS, RecordBatch, RecordLayout

FIRST = 16
"""A record in the file may be so many times shorter than in memory, before it is known how much."""
Run = tuple[Frame, int, int]
"""Records one after the other: their frame, where they begin, and their number."""
Piece = tuple[bytes, list[Run]]
"""Bytes of the file, and the records in them."""


class UnreadableSegment(RunLogError):
    """A segment that no later attempt can read."""


class Tail:
    """Bytes of a growing file that have not been consumed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0

    def read(self, most: int = -1) -> bytes:
        try:
            with open(self.path, "rb", opener=plain_file) as file:
                file.seek(self.offset)
                return file.read(most)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise RunLogError(f"{self.path} cannot be read: {error.strerror}.") from error


class SegmentTail:
    """The complete records of one segment, as they appear.

    Arrow reads the first record of each width; the others, whose bytes before the numbers are the same, are cut out of
    the file. What is unreadable is counted and skipped, up to the next record. At the end of the file it is left, as it
    may still be incomplete, if it is all zero or shorter than the longest record.
    """

    def __init__(self, path: Path) -> None:
        self._tail = Tail(path)
        self.layout: RecordLayout | None = None
        self._schema: pa.Schema | None = None
        self._frames: Frames
        self._first = 0
        self.path = path
        self.damaged = 0
        """Complete but unreadable records so far; at least, where several in a row are."""
        self.torn = 0

    @property
    def offset(self) -> int:
        """Bytes consumed."""
        return self._tail.offset

    def chunks(self, size: int) -> Iterator[RecordBatch]:
        """All present records, in batches of about `size` bytes in memory, or of one record if it is larger."""
        least = most = first = max(1, size // FIRST)
        while True:
            before = self.offset
            block = self.poll(most)
            if block is not None:
                yield block
                if before < self._first:
                    least = first  # the layout may be much longer than a record
                most = max(least, size * (self.offset - max(before, self._first)) // block.rows.nbytes)
            elif self.offset > before:
                least = most = first
            elif self.torn < most:
                return
            else:
                least = most = 2 * most

    def poll(self, most: int = -1) -> RecordBatch | None:
        """New records from at most `most` bytes, or all."""
        data = self._tail.read(most)
        done = self._begin(data)
        runs: list[Run] = []
        if self.layout is not None:
            runs, done, damaged = self._cut(data, done)
            self.damaged += damaged
        self._tail.offset += done
        self.torn = len(data) - done
        return self._batch([(data, runs)])

    def pick(self, count: int, newest: bool = False) -> RecordBatch | None:
        """At most `count` records, evenly from the first to the last byte, or the newest; None if there is none.

        Only they are read, besides the beginning of the segment at the first call.
        """
        size = 1 << 16
        while self.layout is None or not self._frames.most:
            if self.poll(size) is None and self.torn < size:
                return None
            size *= 2
        with open(self.path, "rb", opener=plain_file) as file:
            end = file.seek(0, 2)
            if newest:
                return self._batch([self._newest(file, end, count)])
            data, runs = self._newest(file, end, 1)
            last = end - len(data) + runs[-1][1] if runs else self._first
            places = np.linspace(self._first, last, count).astype(int).tolist()
            found = dict(filter(None, (self._from(file, place) for place in places)))
        return self._batch([found[at] for at in sorted(found)])

    def _newest(self, file: BinaryIO, end: int, count: int) -> Piece:
        """The newest records, from as few bytes at the end of the file as have them."""
        span = 1 << 14
        while True:
            start = max(self._first, end - span)
            file.seek(start)
            data = file.read(end - start)
            runs, _, _ = self._cut(data, 0 if start == self._first else max(0, data.find(self._frames.mark)))
            if start == self._first or sum(number for _, _, number in runs) >= count:
                break
            span *= 2
        kept: list[Run] = []
        for frame, at, number in reversed(runs):
            taken = min(number, count - sum(n for _, _, n in kept))
            if taken:
                kept.insert(0, (frame, at + (number - taken) * frame.size, taken))
        return data, kept

    def _from(self, file: BinaryIO, place: int) -> tuple[int, Piece] | None:
        """The first readable record that begins at a place of the file or after it, and where."""
        span = 1 << 14
        while True:
            file.seek(place)
            data = file.read(span)
            at = data.find(self._frames.mark)
            while at >= 0:
                frame = self._frame(data, at)
                if frame is not None and at + frame.size <= len(data):
                    return place + at, (data, [(frame, at, 1)])
                at = data.find(self._frames.mark, at + 1)
            if len(data) < span:
                return None
            span *= 2

    def _begin(self, data: bytes) -> int:
        """Read the schema message that the segment begins with. Bytes taken: 0 if it is not there yet."""
        if self.layout is not None:
            return 0
        source = pa.BufferReader(data)
        try:
            message = pa.ipc.read_message(source)
        except (pa.ArrowException, EOFError, OSError):
            return 0
        self.layout, self._schema = _table_of(message, self.path)
        self._frames = Frames(self.layout.width, pa.types.is_fixed_size_list(self._schema.field("values").type))
        self._first = source.tell()
        return self._first

    def _cut(self, data: bytes, done: int) -> tuple[list[Run], int, int]:
        """The records from a place on, where those that are complete end, and how many were damaged."""
        runs: list[Run] = []
        damaged = lost = 0
        while done < len(data):
            frame = self._frame(data, done)
            if frame is None:
                skipped = self._unreadable(data, done)
                lost += skipped
            else:
                skipped = frame.size * frame.count(data, done)
                if skipped:
                    runs.append((frame, done, skipped // frame.size))
            if not skipped or frame is not None:
                damaged, lost = damaged + self._records(lost), 0
            if not skipped:
                break
            done += skipped
        return runs, done, damaged + self._records(lost)

    def _records(self, lost: int) -> int:
        return -(-lost // self._frames.most) if lost else 0

    def _frame(self, data: bytes, start: int) -> Frame | None:
        """The frame of the record that begins there; None if it cannot be read."""
        known = self._frames.at(data, start)
        if known is not None:
            return known
        source = pa.BufferReader(data)
        source.seek(start)
        try:
            message = pa.ipc.read_message(source)
            return self._frames.add(frame_of(message, self._schema, data[start : source.tell()]))
        except (pa.ArrowException, EOFError, OSError):
            return None

    def _unreadable(self, data: bytes, start: int) -> int:
        """Bytes to skip of what cannot be read: 0 if it may still be incomplete."""
        most, mark = self._frames.most, self._frames.mark
        if not most or data.count(0, start, start + most) == min(most, len(data) - start):
            return 0
        following = data.find(mark, start + 1)
        if following >= 0:
            return following - start
        return (len(data) - start) // most * most

    def _batch(self, pieces: list[Piece]) -> RecordBatch | None:
        """The records of some pieces of the file."""
        total = sum(count for _, runs in pieces for _, _, count in runs)
        if not total or self.layout is None:
            return None
        steps, times = np.empty(total, np.int64), np.empty(total, np.float64)
        rows = np.empty((total, self.layout.width), np.float32)
        at = 0
        for data, runs in pieces:
            for frame, start, count in runs:
                records, here = frame.records(data, start, count), slice(at, at + count)
                steps[here], times[here] = records["step"], records["time"]
                rows[here, : frame.width] = records["values"]
                rows[here, frame.width :] = np.nan
                at += count
        return RecordBatch(self.layout, steps, times, rows)


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
    if layout is None:
        raise UnreadableSegment(f"{path} has schema {found!r}, and this stabwatch reads {READABLE}.")
    return layout, schema


@lru_cache(maxsize=64)
def _parsed(text: bytes) -> tuple[Any, RecordLayout | None, pa.Schema]:
    """Schema version, layout and schema of records: one for all segments that have the same, as they are large."""
    found = json.loads(text).get("schema")
    if found not in READABLE_VERSIONS:
        return found, None, None
    layout = RecordLayout.from_json(text)
    layout.check()
    return found, layout, columns(layout.width if found == FIXED_WIDTH else None)
