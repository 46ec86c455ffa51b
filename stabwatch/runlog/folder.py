"""A run folder on the disk: its segments of records and its events, written by the calling thread."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stabwatch.runlog.frame import Frame, frame_of, written_width
from stabwatch.runlog.lock import RunLock
from stabwatch.runlog.plain_file import plain_file
from stabwatch.runlog.schema import EVENTS, META, Event, Meta, RecordLayout, segments_of

ROTATE_SHARE = 0.05
ROTATE_SECONDS = (30.0, 600.0)
"""A segment that will be sent elsewhere is closed at this share of the run's age, within these limits: the more records
there are, the larger are the segments."""


def columns(width: int | None = None) -> pa.Schema:
    """Columns of a segment. width: number of values of each record, if it is fixed."""
    numbers = pa.field("field", pa.float32(), nullable=False)
    return pa.schema(
        [
            pa.field("step", pa.int64(), nullable=False),
            pa.field("time", pa.float64(), nullable=False),
            pa.field("values", pa.list_(numbers) if width is None else pa.list_(numbers, width), nullable=False),
        ]
    )


def arrow_schema(layout: RecordLayout) -> pa.Schema:
    """Schema of a segment; the record layout is its metadata."""
    return columns().with_metadata({"stabwatch": layout.to_json()})


def _arrow(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """An array (n,) of numbers as an Arrow array. `pa.array` would import pandas, to ask whether it is a Series."""
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


class Segment:
    """One `signals-NNN.arrows` file. A failed write is truncated, so that the file stays readable.

    A record ends after its last number (see `written_width`). Arrow makes the bytes of the first record of each width.
    In later ones only the numbers differ, and are put in their places.
    Raises ValueError for a layout without columns, and OSError if the file cannot be created; then no file is left.
    """

    def __init__(self, path: Path, layout: RecordLayout) -> None:
        layout.check()  # an empty list would crash Arrow and the process
        self.layout = layout
        self.torn = False
        self._schema = arrow_schema(layout)
        self._templates: dict[int, tuple[Frame, bytearray]] = {}
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115  (lives as long as the segment)
        self._good = 0
        try:
            self._write(self._schema.serialize())
        except OSError:
            self._file.close()
            path.unlink()
            raise

    def _write(self, data: pa.Buffer | bytearray) -> None:
        view = memoryview(data)
        try:
            while len(view):
                view = view[self._file.write(view) or 0 :]
        except OSError:
            self.torn = True
            self._file.truncate(self._good)
            self._file.seek(self._good)
            self.torn = False
            raise
        self._good += len(data)

    def append(self, step: int, time: float, values: NDArray[np.float32]) -> None:
        """Write and flush one record. Raises ValueError for another number of values than the layout has."""
        if len(values) != self.layout.width:
            raise ValueError(f"{len(values)} values for a record of {self.layout.width}")
        values = np.ascontiguousarray(values, dtype=np.float32)
        values = values[: written_width(values)]
        if len(values) not in self._templates:
            data = self._batch(step, time, values).serialize()
            frame = frame_of(pa.ipc.read_message(data), self._schema, data.to_pybytes())
            self._templates[len(values)] = frame, bytearray(data)
        frame, record = self._templates[len(values)]
        frame.fill(record, step, time, values)
        self._write(record)

    def _batch(self, step: int, time: float, values: NDArray[np.float32]) -> pa.RecordBatch:
        ends = _arrow(np.array([0, len(values)], np.int32), pa.int32())
        return pa.record_batch(
            [
                _arrow(np.array([step], np.int64), pa.int64()),
                _arrow(np.array([time], np.float64), pa.float64()),
                pa.ListArray.from_arrays(ends, _arrow(values, pa.float32()), type=self._schema.field("values").type),
            ],
            schema=self._schema,
        )

    def close(self) -> None:
        """Close without an end-of-stream mark, as after a crash."""
        self._file.close()


class RunFolder:
    """Creates a run folder and appends to it in the calling thread. Errors are raised.

    rotates: begin a new segment now and then, as closed ones can be sent to an object store.
    """

    def __init__(self, path: Path, meta: Meta, lock: RunLock | None = None) -> None:
        self.path = path
        self.run = meta.run
        self._lock = lock
        path.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path / EVENTS):
            os.close(plain_file(str(path / EVENTS), os.O_RDWR))
        self._known: set[int] = set()
        self.describe(meta)
        self._segment: Segment | None = None
        self._segments = len(segments_of(path))
        self.rotates = False
        self.open_segment: Path | None = None
        self._made = self._opened = time.monotonic()

    def describe(self, meta: Meta) -> None:
        """Write the metadata, whole or not at all."""
        draft = self.path / f"{META}.new"
        draft.unlink(missing_ok=True)  # a link would be followed
        draft.write_text(meta.to_json(), encoding="utf-8")
        self._known.add(draft.stat().st_ino)  # another thread may check before the next line has ended
        draft.replace(self.path / META)
        self.meta = meta

    def append(self, layout: RecordLayout, step: int, time: float, values: NDArray[np.float32]) -> None:
        """Append one record. A new layout starts a new segment; so does an incomplete record that could not be "
        "truncated."""
        if self._segment is None or self._segment.layout is not layout or self._segment.torn or self._is_old():
            self._segment = self._next(layout)
        self._segment.append(step, time, values)

    def _next(self, layout: RecordLayout) -> Segment:
        self.close()
        path = self.path / f"signals-{self._segments:03d}.arrows"
        segment = Segment(path, layout)
        self.open_segment = path
        self._segments += 1
        self._opened = time.monotonic()
        return segment

    def _is_old(self) -> bool:
        least, most = ROTATE_SECONDS
        now = time.monotonic()
        return self.rotates and now - self._opened > min(most, max(least, ROTATE_SHARE * (now - self._made)))

    def event(self, event: Event) -> None:
        """Append one line to events.jsonl."""
        append_event(self.path, event)

    def check(self) -> None:
        """Raises FileNotFoundError if the folder was deleted or moved."""
        if (self.path / META).stat().st_ino not in self._known:
            raise FileNotFoundError(errno.ENOENT, "another run is in the folder", str(self.path))

    def close(self) -> None:
        """Close the open segment."""
        if self._segment is not None:
            self._segment.close()
            self._segment = self.open_segment = None

    def release(self) -> None:
        """Close, and let other processes write to the folder."""
        self.close()
        if self._lock is not None:
            self._lock.release()


def append_event(run: Path, event: Event) -> None:
    """Append an event to a run folder with one write call, so that several processes may append. Raises OSError.

    An incomplete line, left by a full disk, is ended first, so that this line stays readable.
    """
    with open(run / EVENTS, "a+b", buffering=0, opener=plain_file) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        line = b"\n" * (file.read(1) not in (b"", b"\n")) + event.to_json().encode() + b"\n"
        if file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(run / EVENTS))
