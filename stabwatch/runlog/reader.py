"""Reading a run folder, live or finished. An incomplete record at the end is ignored."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stabwatch.errors import RunLogError
from stabwatch.runlog.schema import (
    EVENTS,
    META,
    SCHEMA_VERSION,
    Event,
    Meta,
    RecordBatch,
    RecordLayout,
    SeriesKey,
    common_series,
    segments_of,
)
from stabwatch.runlog.writer import arrow_schema

Number = TypeVar("Number", np.int64, np.float64, np.float32)
Numbers = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float32]]
"""Steps (n,), times (n,) and rows (n, width) of some records."""
CHUNK = 8 << 20
"""Bytes of a segment in memory at a time while streaming."""
_AT_A_TIME = 256
"""Records whose headers are compared at a time, so that many damaged ones cost no more than others."""


class _Unreadable(RunLogError):
    """A segment that no later attempt can read."""


class _Tail:
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


@dataclass(frozen=True)
class _Frame:
    """Where the numbers are in a record of a segment. All its records have equal bytes before their numbers.

    size: bytes of a record. head: the bytes before the body. step, time, values: offsets in the record. width: number
    of values.
    """

    size: int
    head: NDArray[np.uint8]
    step: int
    time: int
    values: int
    width: int

    def intact(self, data: bytes, start: int) -> int:
        """Number of records from `start` on with that head, up to the first other one."""
        records = self._records(data, start, min(_AT_A_TIME, (len(data) - start) // self.size))
        other = (records[:, : len(self.head)] != self.head).any(axis=1)
        return int(other.argmax()) if other.any() else len(other)

    def numbers(self, data: bytes, start: int, count: int) -> Numbers:
        """Steps, times and rows of some intact records."""
        records = self._records(data, start, count)
        step, time = (np.ascontiguousarray(records[:, at : at + 8]) for at in (self.step, self.time))
        rows = np.ascontiguousarray(records[:, self.values : self.values + 4 * self.width])
        return step.view(np.int64)[:, 0], time.view(np.float64)[:, 0], rows.view(np.float32)

    def _records(self, data: bytes, start: int, count: int) -> NDArray[np.uint8]:
        return np.frombuffer(data, np.uint8, count * self.size, start).reshape(count, self.size)


class _SegmentTail:
    """The complete records of one segment, as they appear.

    All records of a segment have the same header and the same length, so a damaged one is counted and skipped. A
    shorter one, or one that is all zero, may still be incomplete. Arrow reads the first record; those whose header has
    the same bytes are cut out of the file at the same places.
    """

    def __init__(self, path: Path) -> None:
        self._tail = _Tail(path)
        self.layout: RecordLayout | None = None
        self._schema: pa.Schema | None = None
        self._header: pa.Buffer | None = None
        self._frame: _Frame | None = None
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
            if record is not None:
                found.append(record)
            done = source.tell()
        self._tail.offset += done
        self.torn = len(data) - done
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
            self.layout = _table_of(message, self.path)
            self._schema = arrow_schema(self.layout)
            return None
        if self._header is not None and not message.metadata.equals(self._header):
            raise pa.ArrowInvalid("a record whose header differs from the first one's")
        batch = pa.ipc.read_record_batch(message, self._schema)
        batch.validate(full=True)
        columns = (batch.column(0), batch.column(1), batch.column(2).values)
        if self._header is None:
            self._header = message.metadata
            if len(batch) == 1:
                self._frame = _frame(message.body, columns, data[start : source.tell()])
        steps, times = numbers(columns[0], np.int64), numbers(columns[1], np.float64)
        return steps, times, numbers(columns[2], np.float32).reshape(-1, self.layout.width)


def _frame(body: pa.Buffer, columns: Sequence[pa.Array], record: bytes) -> _Frame:
    """Where a record has the numbers of its columns."""
    head = len(record) - body.size
    step, time, values = (head + column.buffers()[1].address - body.address for column in columns)
    return _Frame(len(record), np.frombuffer(record, np.uint8, head), step, time, values, len(columns[2]))


def _table_of(message: pa.Message, path: Path) -> RecordLayout:
    """The record layout of a schema message. Raises _Unreadable."""
    # Cut out of the header by its length, because pa.ipc.read_schema can crash the process on a damaged header.
    header = message.metadata.to_pybytes()
    start = header.find(b'{"schema":')
    if message.type != "schema" or start < 0:
        raise _Unreadable(
            f"{path} is an Arrow stream, but not one of stabwatch: its schema has no `stabwatch` metadata."
        )
    text = header[start : start + int.from_bytes(header[start - 4 : start], "little")]
    try:
        found = json.loads(text).get("schema")
        if found != SCHEMA_VERSION:
            raise _Unreadable(f"{path} has schema {found!r}, and this stabwatch reads {SCHEMA_VERSION}.")
        layout = RecordLayout.from_json(text)
        layout.check()
    except RunLogError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _Unreadable(f"{path} has a damaged record layout: {type(error).__name__}: {error}.") from error
    return layout


def numbers(array: pa.Array, kind: type[Number]) -> NDArray[Number]:
    """A NumPy view of an array without nulls. `to_numpy` would import pandas, which takes half a second."""
    return np.frombuffer(array.buffers()[1], kind, len(array), array.offset * np.dtype(kind).itemsize)


class RunLog:
    """A run folder, opened for reading. `poll` returns the records since the last call.

    Raises RunLogError when the folder has no readable meta.json or another schema version; so does `poll` when no
    segment is readable, or when one cannot be read at the moment: the next call goes on there.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.meta = read_meta(self.path)
        self._segments: dict[Path, _SegmentTail] = {}
        self._events = _Tail(self.path / EVENTS)
        self.bad_event_lines = 0
        self.unreadable: dict[Path, str] = {}
        """Segments that are damaged or not stabwatch's, and what is wrong with them. The others are read."""

    @property
    def damaged_records(self) -> int:
        """Number of complete but unreadable records so far."""
        return sum(segment.damaged for segment in self._segments.values())

    @property
    def torn_bytes(self) -> int:
        """Bytes of incomplete records at the ends of segments, at the last poll."""
        return sum(segment.torn for segment in self._segments.values())

    def poll(self) -> list[RecordBatch]:
        """New records, in the order of writing."""
        return list(self.stream(-1))

    def stream(self, size: int = CHUNK) -> Iterator[RecordBatch]:
        """The same records as `poll`, about `size` bytes at a time, to need little memory."""
        for path in segments_of(self.path):
            if path not in self.unreadable:
                yield from self._read(self._segments.setdefault(path, _SegmentTail(path)), size)
        if self.unreadable and not any(segment.layout for segment in self._segments.values()):
            raise RunLogError(next(iter(self.unreadable.values())))

    def _read(self, segment: _SegmentTail, size: int) -> Iterator[RecordBatch]:
        try:
            if not segment.path.is_file():
                raise _Unreadable(f"{segment.path} is not a file.")
            if size < 0:
                block = segment.poll()
                yield from () if block is None else (block,)
            else:
                yield from segment.chunks(size)
        except _Unreadable as error:
            self.unreadable[segment.path] = str(error)

    @property
    def position(self) -> int:
        """Bytes of the segments that have been read."""
        return sum(segment.offset for segment in self._segments.values())

    @property
    def size(self) -> int:
        """Size of all segments in bytes."""
        return sum(path.stat().st_size for path in segments_of(self.path))

    @property
    def layouts(self) -> list[RecordLayout]:
        """The record layouts of all segments."""
        heads = [_SegmentTail(path) for path in segments_of(self.path)]
        for head in heads:
            next(self._read(head, 1 << 16), None)
        return [head.layout for head in heads if head.layout is not None]

    def poll_events(self) -> list[Event]:
        """New events. An incomplete line is left for the next call; an invalid line is counted and skipped."""
        data = self._events.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._events.offset += len(whole)
        return list(self._parse(whole))

    def _parse(self, data: bytes) -> Iterator[Event]:
        for line in data.split(b"\n"):
            if not line:
                continue
            try:
                yield Event.from_json(line)
            except (ValueError, KeyError, TypeError, RecursionError):
                self.bad_event_lines += 1


def read_meta(run: Path) -> Meta:
    """meta.json of a run folder. Raises RunLogError."""
    path = run / META
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        where = "no such folder" if not run.is_dir() else f"it has no {META}"
        raise RunLogError(
            f"{run} is not a run folder: {where}. Give the folder that `stabwatch.attach` printed."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunLogError(f"{path} cannot be read: {error}.") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA_VERSION:
        found = data.get("schema") if isinstance(data, dict) else None
        raise RunLogError(f"{path} has schema {found!r}, and this stabwatch reads {SCHEMA_VERSION}.")
    known = {f.name for f in fields(Meta)}
    try:
        return Meta(**{k: v for k, v in data.items() if k in known})
    except TypeError as error:
        raise RunLogError(f"{path} is incomplete: {error}.") from error


@dataclass(frozen=True)
class Run:
    """A run in memory: record batches in order, events, and series by key."""

    path: Path
    meta: Meta
    blocks: tuple[RecordBatch, ...]
    events: tuple[Event, ...] = ()
    damaged_records: int = 0
    """Records that were skipped because they could not be read."""
    torn_bytes: int = 0
    """Bytes of incomplete records at the ends of segments, from a crash or a full disk."""
    bad_event_lines: int = 0
    unreadable: tuple[str, ...] = ()
    """What is wrong with each segment that could not be read."""

    @cached_property
    def keys(self) -> tuple[SeriesKey, ...]:
        """All series, in order of first appearance."""
        return common_series([b.layout for b in self.blocks])

    @cached_property
    def steps(self) -> NDArray[np.int64]:
        """Steps of all records, in the order written."""
        return np.concatenate([np.empty(0, np.int64), *(b.steps for b in self.blocks)])

    @cached_property
    def times(self) -> NDArray[np.float64]:
        """Times of all records."""
        return np.concatenate([np.empty(0), *(b.times for b in self.blocks)])

    def series(self, signal: str, layer: str = "") -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(steps, values) of one series where it was measured; a measured value may be NaN or infinite."""
        key = SeriesKey(signal, layer)
        steps, values = [np.empty(0, np.int64)], [np.empty(0)]
        for block in self.blocks:
            if key in block.layout.keys:
                column = block.layout.keys.index(key)
                seen = block.measured[:, column]
                steps.append(block.steps[seen])
                values.append(block.values[seen, column])
        return np.concatenate(steps), np.concatenate(values)


def read_run(path: str | Path) -> Run:
    """Read a whole run folder. Raises RunLogError."""
    log = RunLog(path)
    blocks, events = tuple(log.poll()), tuple(log.poll_events())
    return Run(
        log.path, log.meta, blocks, events, log.damaged_records, log.torn_bytes, log.bad_event_lines,
        tuple(log.unreadable.values()),
    )  # fmt: skip


def find_run(path: str | Path) -> Path:
    """The run folder at a path, or the newest run folder directly inside it. Raises RunLogError."""
    path = Path(path)
    if (path / META).exists() or not path.is_dir():
        return path
    runs = sorted((p.parent for p in path.glob(f"*/{META}")), key=lambda p: (p / META).stat().st_mtime)
    if not runs:
        raise RunLogError(f"{path} is neither a run folder (no {META}) nor a folder of runs.")
    return runs[-1]


def holds_run(path: Path) -> bool:
    """Whether the path is a run folder or directly contains one."""
    return (path / META).exists() or next(path.glob(f"*/{META}"), None) is not None


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """All run folders at paths or directly inside them, by age. Raises RunLogError."""
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        inside = [] if (path / META).exists() else [p.parent for p in path.glob(f"*/{META}")]
        runs = sorted(inside, key=lambda p: (p / META).stat().st_mtime) or [find_run(path)]
        found.update({run.resolve(): run for run in runs if run.resolve() not in found})
    return list(found.values())


def wait_for_run(path: Path, timeout: float = 10.0) -> RunLog:
    """Wait for a run folder and open it."""
    end = time.monotonic() + timeout
    while True:
        try:
            return RunLog(path)
        except RunLogError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
