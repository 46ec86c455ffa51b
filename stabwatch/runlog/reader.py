"""Reading a run folder, live or finished. An incomplete record at the end is ignored."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
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
CHUNK = 8 << 20
"""Bytes of a segment in memory at a time while streaming."""


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


class _SegmentTail:
    """The complete records of one segment, as they appear.

    All records of a segment have the same header and the same length, so a damaged one is counted and skipped. A
    shorter one, or one that is all zero, may still be incomplete.
    """

    def __init__(self, path: Path) -> None:
        self._tail = _Tail(path)
        self.layout: RecordLayout | None = None
        self._schema: pa.Schema | None = None
        self._header: pa.Buffer | None = None
        self._size = 0
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
        batches: list[pa.RecordBatch] = []
        done = 0
        while done < len(data):
            try:
                batch = self._next(source)
            except (pa.ArrowException, EOFError, OSError):
                if not self._whole(data[done : done + self._size]):
                    break
                self.damaged += 1
                done += self._size
                source.seek(done)
                continue
            if batch is not None:
                batches.append(batch)
                self._size = source.tell() - done
            done = source.tell()
        self._tail.offset += done
        self.torn = len(data) - done
        if not batches or self.layout is None:
            return None
        return _block(self.layout, batches)

    def _whole(self, data: bytes) -> bool:
        """Whether unreadable bytes are as long as a record and not all zero."""
        return 0 < self._size == len(data) and data.count(0) < len(data)

    def _next(self, source: pa.BufferReader) -> pa.RecordBatch | None:
        """The next record; None for the schema message that the segment begins with."""
        message = pa.ipc.read_message(source)
        if self._schema is None:
            self.layout = _table_of(message, self.path)
            self._schema = arrow_schema(self.layout)
            return None
        if self._header is not None and not message.metadata.equals(self._header):
            raise pa.ArrowInvalid("a record whose header differs from the first one's")
        batch = pa.ipc.read_record_batch(message, self._schema)
        batch.validate(full=True)
        self._header = message.metadata
        return batch


def _table_of(message: pa.Message, path: Path) -> RecordLayout:
    """The record layout of a schema message. Raises RunLogError."""
    # Cut out of the header by its length, because pa.ipc.read_schema can crash the process on a damaged header.
    header = message.metadata.to_pybytes()
    start = header.find(b'{"schema":')
    if message.type != "schema" or start < 0:
        raise RunLogError(
            f"{path} is an Arrow stream, but not one of stabwatch: its schema has no `stabwatch` metadata."
        )
    text = header[start : start + int.from_bytes(header[start - 4 : start], "little")]
    try:
        found = json.loads(text).get("schema")
        if found != SCHEMA_VERSION:
            raise RunLogError(f"{path} has schema {found!r}, and this stabwatch reads {SCHEMA_VERSION}.")
        layout = RecordLayout.from_json(text)
        layout.check()
    except RunLogError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunLogError(f"{path} has a damaged record layout: {type(error).__name__}: {error}.") from error
    return layout


def _block(layout: RecordLayout, batches: list[pa.RecordBatch]) -> RecordBatch:
    rows = [numbers(batch.column(2).values, np.float32) for batch in batches]
    return RecordBatch(
        layout,
        np.concatenate([numbers(batch.column(0), np.int64) for batch in batches]),
        np.concatenate([numbers(batch.column(1), np.float64) for batch in batches]),
        np.concatenate(rows).reshape(-1, layout.width),
    )


def numbers(array: pa.Array, kind: type[Number]) -> NDArray[Number]:
    """A NumPy view of an array without nulls. `to_numpy` would import pandas, which takes half a second."""
    return np.frombuffer(array.buffers()[1], kind, len(array), array.offset * np.dtype(kind).itemsize)


class RunLog:
    """A run folder, opened for reading. `poll` returns the records since the last call.

    Raises RunLogError when the folder has no readable meta.json or another schema version; so does `poll` when a
    segment is unreadable or not stabwatch's.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.meta = read_meta(self.path)
        self._segments: dict[Path, _SegmentTail] = {}
        self._events = _Tail(self.path / EVENTS)
        self.bad_event_lines = 0

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
        for path in segments_of(self.path):
            self._segments.setdefault(path, _SegmentTail(path))
        blocks = (segment.poll() for segment in self._segments.values())
        return [block for block in blocks if block is not None]

    def stream(self, size: int = CHUNK) -> Iterator[RecordBatch]:
        """The same records as `poll`, about `size` bytes at a time, to need little memory."""
        for path in segments_of(self.path):
            yield from self._segments.setdefault(path, _SegmentTail(path)).chunks(size)

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
            next(head.chunks(1 << 16), None)
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
    return Run(log.path, log.meta, blocks, events, log.damaged_records, log.torn_bytes, log.bad_event_lines)


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
