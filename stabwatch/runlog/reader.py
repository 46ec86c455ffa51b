"""The reading end: the same code tails a live run and reads a dead one. A torn tail is dropped."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stabwatch.errors import RunLogError
from stabwatch.runlog.schema import (
    EVENTS,
    META,
    SCHEMA_VERSION,
    SEGMENTS,
    Block,
    Event,
    Meta,
    SeriesKey,
    SlotTable,
    common_series,
)


class _Tail:
    """Bytes of a growing file that have not been consumed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0

    def read(self) -> bytes:
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                return file.read()
        except FileNotFoundError:
            return b""


class _SegmentTail:
    """Whole record batches of one segment, as they appear."""

    def __init__(self, path: Path) -> None:
        self._tail = _Tail(path)
        self._schema: pa.Schema | None = None
        self._table: SlotTable | None = None
        self.path = path

    def poll(self) -> Block | None:
        data = self._tail.read()
        if not data:
            return None
        source = pa.BufferReader(data)
        batches: list[pa.RecordBatch] = []
        done = 0
        while done < len(data):
            try:
                message = pa.ipc.read_message(source)
                if self._schema is None:
                    self._schema = pa.ipc.read_schema(message)
                    self._table = _table_of(self._schema, self.path)
                else:
                    batches.append(pa.ipc.read_record_batch(message, self._schema))
            except (pa.ArrowInvalid, EOFError, OSError):
                break  # a torn tail, or one still being written: the next poll starts here again
            done = source.tell()
        self._tail.offset += done
        if not batches or self._table is None:
            return None
        return _block(self._table, pa.Table.from_batches(batches))


def _table_of(schema: pa.Schema, path: Path) -> SlotTable:
    text = (schema.metadata or {}).get(b"stabwatch")
    if text is None:
        raise RunLogError(f"{path} is an Arrow stream, but not stabwatch's: its schema has no `stabwatch` metadata.")
    return SlotTable.from_json(text)


def _block(table: SlotTable, data: pa.Table) -> Block:
    values = data.column("values").combine_chunks()
    flat = values.flatten() if isinstance(values, pa.FixedSizeListArray) else values.chunk(0).flatten()
    return Block(
        table,
        data.column("step").to_numpy(),
        data.column("time").to_numpy(),
        flat.to_numpy().reshape(len(data), table.width),
    )


class RunLog:
    """A run folder, opened for reading; `poll` gives what is new since the last call.

    Raises RunLogError when the folder has no readable meta.json or another schema version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.meta = read_meta(self.path)
        self._segments: dict[Path, _SegmentTail] = {}
        self._events = _Tail(self.path / EVENTS)
        self.bad_event_lines = 0

    def poll(self) -> list[Block]:
        """New records, in the order in which they were written."""
        for path in sorted(self.path.glob(SEGMENTS)):
            self._segments.setdefault(path, _SegmentTail(path))
        blocks = (segment.poll() for segment in self._segments.values())
        return [block for block in blocks if block is not None]

    def poll_events(self) -> list[Event]:
        """New events. A line without an end is left for the next call; a broken line is counted and skipped."""
        data = self._events.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._events.offset += len(whole)
        return list(self._parse(whole))

    def _parse(self, data: bytes) -> Iterator[Event]:
        for line in data.splitlines():
            try:
                yield Event.from_json(line)
            except (ValueError, KeyError, TypeError):
                self.bad_event_lines += 1


def read_meta(run: Path) -> Meta:
    """meta.json of a run folder. Raises RunLogError."""
    path = run / META
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        where = "no such folder" if not run.is_dir() else f"it has no {META}"
        raise RunLogError(
            f"{run} is not a run folder: {where}. Give the folder that `stabwatch.attach` printed."
        ) from None
    except (OSError, ValueError) as error:
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
    """A whole run in memory: blocks in order, events, and series by key."""

    path: Path
    meta: Meta
    blocks: tuple[Block, ...]
    events: tuple[Event, ...] = field(default=())

    @cached_property
    def keys(self) -> tuple[SeriesKey, ...]:
        """All series, in order of first appearance."""
        return common_series([b.table for b in self.blocks])

    @cached_property
    def steps(self) -> NDArray[np.int64]:
        """Steps of all records, in the order written."""
        return np.concatenate([np.empty(0, np.int64), *(b.steps for b in self.blocks)])

    @cached_property
    def times(self) -> NDArray[np.float64]:
        """Times of all records."""
        return np.concatenate([np.empty(0), *(b.times for b in self.blocks)])

    def series(self, signal: str, layer: str = "") -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(steps, values) of one series, only where it was measured."""
        key = SeriesKey(signal, layer)
        steps, values = [np.empty(0, np.int64)], [np.empty(0)]
        for block in self.blocks:
            if key in block.table.keys:
                column = block.values[:, block.table.keys.index(key)]
                seen = ~np.isnan(column)
                steps.append(block.steps[seen])
                values.append(column[seen])
        return np.concatenate(steps), np.concatenate(values)


def read_run(path: str | Path) -> Run:
    """Read a whole run folder. Raises RunLogError."""
    log = RunLog(path)
    return Run(log.path, log.meta, tuple(log.poll()), tuple(log.poll_events()))


def find_run(path: str | Path) -> Path:
    """The run folder meant by a path: itself, or the newest run folder directly inside it. Raises RunLogError."""
    path = Path(path)
    if (path / META).exists() or not path.is_dir():
        return path
    runs = sorted((p.parent for p in path.glob(f"*/{META}")), key=lambda p: (p / META).stat().st_mtime)
    if not runs:
        raise RunLogError(f"{path} is neither a run folder (no {META}) nor a folder that holds one.")
    return runs[-1]


def wait_for_run(path: Path, timeout: float = 10.0) -> RunLog:
    """Open a run folder that is about to appear."""
    end = time.monotonic() + timeout
    while True:
        try:
            return RunLog(path)
        except RunLogError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
