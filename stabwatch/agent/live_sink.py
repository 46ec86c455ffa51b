"""A live sink: python -m stabwatch.agent.live_sink RUN_DIR NAME, a process of its own that the agent starts.

It reads the run log as every other reader does. So it may be slow, block or crash: training, the agent and other sinks
do not notice, and nothing waits in a queue. What it has delivered is kept in RUN_DIR/sinks/NAME.json, and a restarted
sink goes on there, unless its declaration says that it replays.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from stabwatch.agent.discovery import write_atomically
from stabwatch.alerts.timeline import timeline
from stabwatch.errors import ConfigError, MissingExtraError
from stabwatch.exporters.declared import adopt
from stabwatch.exporters.registry import find_sink
from stabwatch.exporters.sink import RunHeader, Sink, SinkDeclaration, make_sink
from stabwatch.runlog import Event, RecordBatch, RunLog
from stabwatch.runlog.lock import RunLock
from stabwatch.runlog.source import record_slice

FOLDER = "sinks"
POLL_SECONDS = 1.0
SETTLE_SECONDS = 3.0
"""The sink is closed when nothing has followed the end of the run for so long."""
UNUSABLE = 2
"""Exit code when starting again would change nothing: a missing extra, an address that is not set."""
BUSY = 3
"""Exit code while another process feeds this sink: one that an earlier agent started, and that is about to end."""


class Position:
    """How many records and events a sink has been given, kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.records = self.events = 0
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            self.records, self.events = int(data["records"]), int(data["events"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none yet, or unreadable: from the beginning

    def write(self) -> None:
        """Keep it."""
        write_atomically(self._path, {"records": self.records, "events": self.events})


class Delivery:
    """Gives a sink what is new in a run log, in order of time. `given`: what an earlier process has delivered."""

    def __init__(self, log: RunLog, sink: Sink, position: Position, replay: bool) -> None:
        self._log, self._sink, self._position = log, sink, position
        self._skip_records = 0 if replay else position.records
        self._skip_events = 0 if replay else position.events
        if replay:
            position.records = position.events = 0
        self.ended = False

    def poll(self) -> bool:
        """Whether there was anything new."""
        blocks, events = self._log.poll(), self._log.poll_events()
        for event in events:
            self.ended = event.kind == "end" or (self.ended and event.kind != "start")
        for item in timeline(_Polled(self._new_records(blocks)), self._new_events(events), kinds=None):
            if isinstance(item, Event):
                self._sink.write_event(item)
                self._position.events += 1
            else:
                self._sink.write(item)
                self._position.records += len(item)
        if blocks or events:
            self._position.write()
        return bool(blocks or events)

    def _new_records(self, blocks: Sequence[RecordBatch]) -> Iterator[RecordBatch]:
        for block in blocks:
            known = min(self._skip_records, len(block))
            self._skip_records -= known
            if known < len(block):
                yield record_slice(block, known, len(block))

    def _new_events(self, events: Sequence[Event]) -> list[Event]:
        known = min(self._skip_events, len(events))
        self._skip_events -= known
        return list(events[known:])


class _Polled:
    """Record batches as `timeline` takes them."""

    def __init__(self, blocks: Iterator[RecordBatch]) -> None:
        self._blocks = blocks

    def stream(self) -> Iterator[RecordBatch]:
        """The batches."""
        return self._blocks


def follow(run: Path, declaration: SinkDeclaration, stopping: threading.Event) -> int:
    """Feed a sink until the run has ended, `stopping` is set, or the agent that started this process is gone."""
    folder = run / FOLDER
    lock = RunLock.take(folder / f".{declaration.name}")
    if lock is None:
        return BUSY
    log = RunLog(run)
    adopt(log.meta.signals)
    target = [] if declaration.target == "none" else [run / declaration.name]
    sink = make_sink(declaration, *target)
    sink.open(RunHeader(log.meta, tuple(log.layouts), 0.0, run, live=True))
    delivery = Delivery(log, sink, Position(folder / f"{declaration.name}.json"), declaration.replays)
    parent, last = os.getppid(), time.monotonic()
    while True:
        if delivery.poll():
            last = time.monotonic()
        over = delivery.ended and time.monotonic() - last >= SETTLE_SECONDS
        if over or stopping.is_set() or os.getppid() != parent:
            break
        stopping.wait(POLL_SECONDS)
    delivery.poll()
    sink.close()
    lock.release()
    return 0


def main(arguments: Sequence[str]) -> int:
    """Follow. Returns 0 or `BUSY`; `UNUSABLE` or 1, and the last line on standard error says why."""
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    run, name = Path(arguments[0]), arguments[1]
    try:
        return follow(run, find_sink(name), stopping)
    except (ConfigError, MissingExtraError) as error:
        return _failed(error, UNUSABLE)
    except Exception as error:
        return _failed(error, 1)


def _failed(error: Exception, code: int) -> int:
    kind = "" if type(error).__module__ == "stabwatch.errors" else f"{type(error).__name__}: "
    print(f"{kind}{error}".replace("\n", " "), file=sys.stderr, flush=True)
    return code


def environment() -> dict[str, Any]:
    """The environment of a sink's process: no accelerator, one thread."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
