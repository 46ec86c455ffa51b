"""Writing a run folder: one thread, one flush per record, and no exception reaches the training."""

from __future__ import annotations

import errno
import logging
import os
import queue
import stat
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stabwatch.runlog.frame import Frame, frame_of, written_width
from stabwatch.runlog.lock import RunLock
from stabwatch.runlog.schema import EVENTS, META, Event, Meta, RecordLayout, segments_of

PAUSE = 0.1
"""Seconds for which items gather before they are written: to wake the thread for each disturbs the training."""
QUIET = PAUSE
"""Seconds without an item after which the thread sleeps until one comes: steps that are longer wake it each time."""
_LOSSES = frozenset({"record", "event", "folder"})
"""Failures by which something of the log is lost."""
ROTATE_SHARE = 0.05
ROTATE_SECONDS = (30.0, 600.0)
"""A segment that will be sent elsewhere is closed at this share of the run's age, within these limits: the more records
there are, the larger are the segments."""
_log = logging.getLogger("stabwatch")


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
            os.close(_plain_file(str(path / EVENTS), os.O_RDWR))
        draft = path / f"{META}.new"
        draft.unlink(missing_ok=True)  # a link would be followed
        draft.write_text(meta.to_json(), encoding="utf-8")
        draft.replace(path / META)
        self._meta = (path / META).stat().st_ino
        self._segment: Segment | None = None
        self._segments = len(segments_of(path))
        self.rotates = False
        self.open_segment: Path | None = None
        self._made = self._opened = time.monotonic()

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
        found = (self.path / META).stat().st_ino
        if found != self._meta:
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


def _plain_file(path: str, flags: int) -> int:
    """Open a file, and neither a link, which may lead anywhere, nor a pipe, which may wait. Raises OSError."""
    file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "is not a plain file", path)
    return file


def append_event(run: Path, event: Event) -> None:
    """Append an event to a run folder with one write call, so that several processes may append. Raises OSError.

    An incomplete line, left by a full disk, is ended first, so that this line stays readable.
    """
    with open(run / EVENTS, "a+b", buffering=0, opener=_plain_file) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        line = b"\n" * (file.read(1) not in (b"", b"\n")) + event.to_json().encode() + b"\n"
        if file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(run / EVENTS))


Resolve = Callable[[], tuple[RecordLayout, NDArray[np.float32]]]
"""Returns the layout and the values of a record. It may wait for a device copy, so it runs in the writer's thread."""


@dataclass(frozen=True)
class _Record:
    step: int
    time: float
    resolve: Resolve


class Writer:
    """A bounded queue and a daemon thread in front of a RunFolder.

    seconds: processor time of the thread so far.
    Never blocks and never raises. A record that cannot be queued or written is dropped and counted in
    `dropped`; the first failure of each kind is remembered in `failures` (text by kind) and written as an
    `error` event as soon as the disk allows it. `idle` is called about once a second from the thread.
    """

    def __init__(self, folder: RunFolder, *, capacity: int = 4096, idle: Callable[[], None] | None = None) -> None:
        self._folder = folder
        self._queue: queue.Queue[_Record | Event | None] = queue.Queue(maxsize=capacity)
        self._idle = idle
        self._pending: list[Event] = []
        self._lock = threading.Lock()
        self._closed = False
        self._end: Event | None = None
        self._before_end: Callable[[], object] = lambda: None
        self._wake = threading.Event()
        self._asleep = self._worked = False
        self.dropped = 0
        self.written = 0
        self.seconds = 0.0
        self.failures: dict[str, str] = {}
        self._thread = threading.Thread(target=self._run, name="stabwatch-writer", daemon=True)
        self._thread.start()

    def record(self, step: int, time: float, resolve: Resolve, at_once: bool = False) -> None:
        """Queue a record. `resolve` returns its layout and values, and is called in the writer's thread.

        at_once: somebody waits for what follows from the record, so no others are to gather first.
        """
        self._put(_Record(step, time, resolve))
        if at_once:
            self.hurry()

    def hurry(self) -> None:
        """Write what is in the queue now."""
        self._wake.set()

    def event(self, kind: str, step: int | None = None, **data: Any) -> None:
        """Queue an event with the present time."""
        self.put(Event(kind, time.time(), step, data))

    def put(self, event: Event) -> None:
        """Queue an event."""
        self._put(event)

    def _put(self, item: _Record | Event) -> None:
        if threading.current_thread() is self._thread and isinstance(item, Event):
            self._pending.append(item)  # it is written after the record in work, also while the queue is emptied
            return
        try:
            if self._closed:
                raise queue.Full
            self._queue.put_nowait(item)
        except queue.Full:
            self._drop()
        if self._asleep:
            self._wake.set()

    def _drop(self) -> None:
        with self._lock:  # both sides of the queue drop
            self.dropped += 1

    def close(
        self, end: Event | None = None, timeout: float = 10.0, before: Callable[[], object] = lambda: None
    ) -> None:
        """Write everything in the queue, then `end` with the number of dropped items, then stop.

        before: called in the thread once the queue is empty; its events come before `end`.
        May be called twice. Later items are dropped and counted. What is not written after `timeout` seconds is said.
        """
        self._closed = True
        self._before_end = before
        if not self._thread.is_alive():
            return
        self._end = end
        waited = time.monotonic() + timeout
        try:
            self._wake.set()
            self._queue.put(None, timeout=timeout)
            self._wake.set()
            self._thread.join(max(0.0, waited - time.monotonic()))
        except queue.Full:
            pass
        if self._thread.is_alive():
            _log.warning(
                "stabwatch: %s is slow: %d records and events are not written after %.0f s.",
                self._folder.path, self._queue.qsize(), timeout,
            )  # fmt: skip

    def _run(self) -> None:
        due, came = time.monotonic() + 1.0, 0.0
        while self._work():
            now = time.monotonic()
            came = now if self._worked else came
            if now > due:
                due = now + 1.0
                self._now_and_then()
            self.seconds = time.thread_time()
            self._gather(now - came > QUIET, due - now)
        self._attempt("report", self._before_end)
        if self._end is not None:
            lost = {"dropped": self.dropped} if self.dropped else {}
            self._pending.append(replace(self._end, data={**self._end.data, **lost}))
        self._flush_events()
        self._attempt("close", self._folder.release)
        self._flush_events()

    def _now_and_then(self) -> None:
        self._attempt("folder", self._folder.check)
        self._attempt("idle", self._idle or (lambda: None))
        self._flush_events()

    def _work(self) -> bool:
        """Write what is in the queue, for about a second at most; False when that was all."""
        self._worked, end = False, time.monotonic() + 1.0
        while time.monotonic() < end:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return True
            if item is None:
                return False
            self._worked = True
            self._handle(item)
        return True

    def _gather(self, quiet: bool, most: float) -> None:
        """Let items gather; if it has been quiet, wait for the next one, `most` seconds at most."""
        if not quiet:
            self._wake.wait(PAUSE)
        else:
            self._asleep = True
            if self._queue.empty():
                self._wake.wait(max(0.0, most))
            self._asleep = False
        self._wake.clear()

    def _handle(self, item: _Record | Event) -> None:
        if isinstance(item, Event):
            self._pending.append(item)
            self._flush_events()
            return

        def write() -> None:
            layout, values = item.resolve()
            self._folder.append(layout, item.step, item.time, values)

        if self._attempt("record", write):
            self.written += 1
            self._flush_events()
        else:
            self._drop()

    def _flush_events(self) -> None:
        while self._pending:
            if not self._attempt("event", partial(self._folder.event, self._pending[0])):
                del self._pending[:-100]
                return
            self._pending.pop(0)

    def _attempt(self, what: str, action: Callable[[], object]) -> bool:
        try:
            action()
        except Exception as error:
            if what not in self.failures:
                self.failures[what] = f"{type(error).__name__}: {error}"
                if what in _LOSSES and not _LOSSES & (self.failures.keys() - {what}):
                    _log.warning(
                        "stabwatch: the run log in %s cannot be written; training goes on, but what is measured now "
                        "is lost. %s", self._folder.path, self.failures[what],
                    )  # fmt: skip
                self._pending.append(
                    Event(
                        "error",
                        time.time(),
                        None,
                        {
                            "probe": f"writer.{what}",
                            "message": self.failures[what],
                            "traceback": traceback.format_exc(limit=8),
                        },
                    )
                )
            return False
        return True
