"""Writing a run folder from training: one thread, one flush per record, and no exception reaches the training."""

from __future__ import annotations

import atexit
import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stabwatch.runlog.folder import RunFolder, append_event
from stabwatch.runlog.schema import Event, RecordLayout

PAUSE = 0.25
"""Seconds for which items gather before they are written: to wake the thread for each disturbs the training."""
QUIET = PAUSE
"""Seconds without an item after which the thread sleeps until one comes: steps that are longer wake it each time."""
LOOK = 1.0
"""Seconds between two looks at the folder."""
_LOSSES = frozenset({"record", "event", "folder"})
"""Failures by which something of the log is lost."""
_log = logging.getLogger("stabwatch")


Resolve = Callable[[], tuple[RecordLayout, NDArray[np.float32]]]
"""Returns the layout and the values of a record. It may wait for a device copy, so it runs in the writer's thread."""


class _Record(NamedTuple):
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
        self._queue: deque[_Record | Event | None] = deque()
        self._capacity = capacity
        self._idle = idle
        self._pending: list[Event] = []
        self._lock = threading.Lock()
        self._closed = False
        self._end: Event | None = None
        self._before_end: Callable[[], object] = lambda: None
        self._wake = threading.Event()
        self._asleep = self._worked = self._busy = False
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
        if isinstance(item, Event) and threading.current_thread() is self._thread:
            self._pending.append(item)  # it is written after the record in work, also while the queue is emptied
            return
        if self._closed or len(self._queue) >= self._capacity:
            self._drop()
        else:
            self._queue.append(item)
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
        self._queue.append(None)
        self._wake.set()
        self._thread.join(timeout)
        if self._thread.is_alive():
            _log.warning(
                "stabwatch: %s is slow: %d records and events are not written after %.0f s.",
                self._folder.path, self._unwritten(), timeout,
            )  # fmt: skip
            self._end_at_exit()

    def _unwritten(self) -> int:
        return self._busy + sum(item is not None for item in self._queue.copy())

    def _end_at_exit(self) -> None:
        """The thread goes on; if it is not done when the process exits, the end is told all the same."""
        leaving = threading.Event()

        def tell() -> None:
            leaving.wait()
            end, self._end = self._end, None
            if self._thread.is_alive() and end is not None:
                lost = {"dropped": self.dropped + self._unwritten()}
                append_event(self._folder.path, replace(end, data={**end.data, **lost}))

        def leave() -> None:
            leaving.set()
            teller.join(1.0)

        # It is started here: at exit no thread can be, and a file system that hangs is not to be waited for.
        teller = threading.Thread(target=tell, name="stabwatch-end", daemon=True)
        teller.start()
        atexit.register(leave)

    def _run(self) -> None:
        np.seterr(all="ignore")  # of this thread: what a run measures may be any number, and warnings may be errors
        due, came = time.monotonic() + LOOK, 0.0
        while self._work():
            now = time.monotonic()
            came = now if self._worked else came
            if now > due:
                due = now + LOOK
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
                item = self._queue.popleft()
            except IndexError:
                return True
            if item is None:
                return False
            self._worked = self._busy = True
            self._handle(item)
            self._busy = False
        return True

    def _gather(self, quiet: bool, most: float) -> None:
        """Let items gather; if it has been quiet, wait for the next one, `most` seconds at most."""
        if not quiet:
            self._wake.wait(PAUSE)
        else:
            self._asleep = True
            if not self._queue:
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
