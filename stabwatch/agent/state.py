"""Follows a run folder, and makes the snapshot for Prometheus, the data of the page, and alert events."""

from __future__ import annotations

import math
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from stabwatch.agent.discovery import Lease
from stabwatch.agent.history import History
from stabwatch.agent.outbox import Outbox
from stabwatch.agent.view import CHARTED, PageHead, page_head
from stabwatch.agent.where import Where, rank_of
from stabwatch.alerts import RULES, Alert, Diagnosis, Engine, Rule, diagnose
from stabwatch.alerts.held_up import KIND as HELD_UP
from stabwatch.alerts.held_up import held_up_in
from stabwatch.alerts.templates import format_batch
from stabwatch.errors import RunLogError
from stabwatch.exporters.cardinality import WORST, Cardinality, Coarse
from stabwatch.exporters.declared import adopt
from stabwatch.exporters.latest import MAX_SERIES, Latest, SeriesCap
from stabwatch.exporters.prometheus import AlertDetail, Snapshot
from stabwatch.exporters.snapshots import snapshot
from stabwatch.runlog import Event, RecordBatch, wait_for_run
from stabwatch.runlog.process import Gone, ProcessWatch
from stabwatch.runlog.stacks import STACKS

READ_BYTES = 4 << 20
"""Bytes of the log that are in memory at a time."""
CHUNK = 256
"""Records per batch, which bounds the memory of a replay of a long log."""
LOOK_SECONDS = 1.0
"""Interval of the checks of the training process; it must be missing in two of them in a row."""
PUBLISH_SECONDS = 0.5
"""Interval at which a long replay publishes its state."""
RANKS_SECONDS = 3.0
"""Seconds that rank 0 has to say which ranks hold up the job."""
DETAILED = 100
"""Firing alerts whose onset, value, rank and batch are exported."""
DETAILED_BATCHES = 2
HEAD_SECONDS = 0.5
"""Minimum interval between updates of the page."""
IDLE_SECONDS = 5.0
"""Interval at which the state is published where nothing has changed: the window of /metrics moves on."""

T = TypeVar("T")


@dataclass(frozen=True)
class Health:
    """The data of /healthz."""

    polled: float
    """Monotonic time of the last successful poll of the run log."""
    step: int | None
    record_age: float | None
    """Seconds between the newest record and now; None without one."""
    errors: int


class Follower:
    """The state of one run, updated by `poll` in one thread and read by any number of others.

    Data for other threads is replaced as a whole; only `history` is shared under a lock, which a scrape never takes. A
    restarted agent reaches the same state and repeats no event.
    """

    def __init__(
        self,
        run: Path,
        *,
        max_series: int = MAX_SERIES,
        cardinality: Cardinality = "layer",
        worst: int = WORST,
        process: ProcessWatch | None = None,
        timeout: float = 0.0,
        rules: Sequence[Rule] = RULES,
        charted: frozenset[str] = CHARTED,
        writes: bool = True,
    ) -> None:
        """charted: signals whose history is kept. writes: False for a reader that never takes the lease."""
        self.log = wait_for_run(run, timeout)
        self.meta = self.log.meta
        adopt(self.meta.signals)
        self.lease = Lease(run, writes)
        self.lease.held()
        self.where = Where(self.meta.run, self.meta.host, str(run))
        """Where it is; whoever serves it adds the address of the page."""
        self.ended: Event | None = None
        self.errors = 0
        self.snapshot = Snapshot(run=self.meta.run)
        self.stopping = threading.Event()
        """Set it to stop a long replay."""
        self.history_lock = threading.Lock()
        self.history = History(charted)
        self.rules = tuple(rules)
        self._active: tuple[Alert, ...] | None = None
        self._engine = Engine(self.rules)
        self._low = {c.gauge for r in self.rules for lv in r.thresholds for c in lv.when if c.below is not None}
        cap = SeriesCap(max_series)
        self._coarse = None if cardinality == "layer" else Coarse(cardinality, cap, worst)
        self._readings = Latest(SeriesCap(sys.maxsize) if self._coarse else cap)
        self._process = process or ProcessWatch(self.meta)
        self._outbox = Outbox(self.log.path, self.lease)
        self.tell = self._outbox.tell
        """Called with the alert events that this agent has written."""
        self._unread: RecordBatch | None = None
        """Records that are read, and wait for the events before them."""
        self._later: list[Event] = []
        self._attempts: list[float] = []
        """Times at which an attempt of the run began."""
        self._skipped: set[Path] = set()
        self._violations: Counter[tuple[str, str]] = Counter()
        self._notices: dict[str, Event] = {}
        self._reported: set[str] = set()
        self._polled = time.monotonic()
        self.health = self._make_health()
        self._grew = time.monotonic()
        self._looked = -math.inf
        self._missing = 0
        self._ranks_looked = -math.inf
        self._turning_points: list[Event] = []
        """The starts and ends of attempts, and what was said of ranks that hold them up."""
        self._diagnosis: Diagnosis = diagnose(self._engine)
        self.head: PageHead = self._make_head()
        self._head_made = self._published = -math.inf
        self._seen: tuple[str, int, int, int] | None = None

    @property
    def state(self) -> str:
        """'running', or why the run ended."""
        return "running" if self.ended is None else str(self.ended.data.get("reason", "ended"))

    def poll(self) -> None:
        """Read new records and events. Never raises: errors are counted, and reported once on standard error."""
        gone = self._attempt("process", self._look)
        grew = bool(self._attempt("log", self._read))
        if grew:
            self._grew = time.monotonic()
        if gone and not grew and self.ended is None:
            self._attempt("end", partial(self._end, gone))
        if self.ended is None:
            self._attempt("tick", lambda: self._alerts(self._engine.tick(self._time())))
        self._attempt("ranks", self._look_at_ranks)
        self._attempt("events", self._outbox.write)
        if self._changed() or grew or self._is_due():
            self._attempt("snapshot", self._publish)
        self.health = self._make_health()
        self._active = self._engine.active if self.lease.held() else None

    def firing(self) -> tuple[Alert, ...] | None:
        """The firing alerts; None while another agent has the lease. Thread-safe."""
        return self._active

    def report_sink(self, name: str, message: str) -> None:
        """Record that a live sink failed. Called by the thread that polls."""
        self.errors += 1
        self._outbox.put(Event("sink", time.time(), self._readings.step, {"sink": name, "message": message}))

    def batches(self, step: int) -> list[str]:
        """What is known of the batches of a step, in words. Thread-safe."""
        known = list(self._engine.memory.batches.get(step, ()))
        return [f"step {entry['step']}: {format_batch(entry)}" for entry in known[:DETAILED_BATCHES]]

    def count_error(self) -> None:
        """Count an error that was logged elsewhere. Thread-safe."""
        self.errors += 1

    def _read(self) -> bool:
        """Read what is new. Records that were written before an event are observed before it."""
        grew = self._read_records()
        self._later, later = [], self._later
        if later:  # they were read after the records, and more may have been written in between
            grew |= self._read_records()
        for event in later:
            self._attempt("event", partial(self._observe_event, event))
        self._polled = time.monotonic()
        return grew

    def _read_records(self) -> bool:
        grew = False
        records = self.log.stream(READ_BYTES)
        while not self.stopping.is_set():
            if self._unread is None:
                self._unread = next(records, None)
            grew |= self._read_events()
            if self._unread is None:
                break
            grew, block, self._unread = True, self._unread, None
            for chunk in _chunks(block):
                self._attempt("records", partial(self._observe, chunk))
                self._polled = time.monotonic()
                if self._polled - self._published > PUBLISH_SECONDS:
                    self._attempt("snapshot", self._publish)
        for path, problem in self.log.unreadable.items():
            self._attempt(f"segment {path.name}", partial(self._report_segment, path, problem))
        return grew

    def _read_events(self) -> bool:
        """Read new events; a change of the data is observed before its records, all others after them."""
        events = self.log.poll_events()
        # events of an earlier agent must be known before the replay reaches them
        self._outbox.in_log(events)
        self._attempts += [e.time for e in events if e.kind == "start"]
        for event in events:
            if event.kind == "change":
                self._attempt("event", partial(self._observe_event, event))
            else:
                self._later.append(event)
        return bool(events)

    def _report_segment(self, path: Path, problem: str) -> None:
        """A damaged segment is an error once."""
        if path not in self._skipped:
            self._skipped.add(path)
            raise RunLogError(f"{problem} It is left out.")

    def _observe(self, block: RecordBatch) -> None:
        arrived = time.monotonic()
        again = self._begins_attempt(block)
        self._readings.observe(block, arrived)
        if self._coarse is not None:
            self._coarse.observe(block, arrived)
        with self.history_lock:
            if again:
                self.history.rewind(int(block.steps[0]))
            self.history.observe(block)
        if self.ended is not None and self.ended.data.get("by") == "agent":
            self.ended = None  # declared dead by mistake
        self._alerts(self._engine.observe(block))

    def _begins_attempt(self, block: RecordBatch) -> bool:
        """Do these records begin another attempt of the run?"""
        newest = self._readings.time
        return newest is not None and any(newest < start <= block.times[0] for start in self._attempts)

    def _observe_event(self, event: Event) -> None:
        if event.kind == "end":
            if self.ended is not None or self._contradicted(event):
                return
            self.ended = event
            self._turning_points.append(event)
        elif event.kind == HELD_UP:
            self._turning_points.append(event)
        elif event.kind == "start":
            self._turning_points.append(event)
            self.ended = None  # the run continues in the same folder, from a checkpoint
        elif event.kind == "error":
            self._notices.setdefault(f"error {event.data.get('probe')}", event)
        elif event.kind == "coverage":
            self._notices["coverage"] = event
        elif event.kind == "sink":
            self._notices[f"sink {event.data.get('sink')}"] = event
        elif event.kind == "guard":
            self._notices[f"guard {event.data.get('guard')}"] = event
        elif event.kind == "snapshot":
            self._notices["snapshot"] = event
        elif event.kind == "change":
            self._notices[f"change {event.step}"] = event
        self._alerts(self._engine.observe_event(event))

    def _contradicted(self, end: Event) -> bool:
        """Whether a process that an agent had declared dead has written since."""
        newest = self._readings.time
        return end.data.get("by") == "agent" and newest is not None and newest > end.time

    def _alerts(self, transitions: Iterable[Alert]) -> None:
        for alert in transitions:
            self._outbox.put(alert.to_event())
            if alert.state == "firing":
                self._violations[alert.rule, alert.layer] += 1

    def _look(self) -> Gone | None:
        """Why the training process is dead; None while it is alive.

        Called before the log is read, so that the last records are seen before the end is declared.
        """
        now = time.monotonic()
        if self.ended is not None or now - self._looked < LOOK_SECONDS:
            return None
        self._looked = now
        gone = self._process.gone(now - self._grew)
        self._missing = self._missing + 1 if gone else 0
        return gone if self._missing > 1 else None

    def _look_at_ranks(self) -> None:
        """Say which ranks hold up the job, where rank 0 does not: it may be the one that has stopped."""
        now = time.monotonic()
        if now - self._ranks_looked < RANKS_SECONDS or not (self.log.path / STACKS).is_dir():
            return
        self._ranks_looked = now
        event = held_up_in(self.log.path, self._turning_points, time.time() - RANKS_SECONDS, "agent")
        if event is not None:
            self._outbox.put(event)
            self._observe_event(event)

    def _end(self, gone: Gone) -> None:
        why = {"reason": "killed", "detail": gone.detail, "by": "agent"}
        event = Event("end", time.time(), self._readings.step, why)
        self._outbox.put(event)
        self._observe_event(event)

    def _time(self) -> float:
        """Now, in seconds since the epoch, on the clock of the training process."""
        return time.time() if self._process.local else self._readings.clock(time.monotonic())

    def _publish(self) -> None:
        now = self._published = time.monotonic()
        self.snapshot = self._make_snapshot(now)
        self.health = self._make_health()
        if now - self._head_made >= HEAD_SECONDS or self.head["run"]["state"] != self.state:
            self._diagnosis = diagnose(self._engine)
            self.head = self._make_head()
            self._head_made = now

    def _changed(self) -> bool:
        """Whether anything but records and events has changed since this was asked last."""
        now = (self.state, self.errors, len(self._engine.active), self._violations.total())
        before, self._seen = self._seen, now
        return now != before

    def _is_due(self) -> bool:
        """Whether the page waits for what was read last, or nothing was published for some time."""
        return self._head_made < self._published or time.monotonic() - self._published >= IDLE_SECONDS

    def _make_health(self) -> Health:
        age = None if self._readings.time is None else max(0.0, self._time() - self._readings.time)
        return Health(self._polled, self._readings.step, age, self.errors)

    def _make_snapshot(self, now: float) -> Snapshot:
        return snapshot(
            self.meta,
            self._readings,
            now,
            state=self.state,
            derived=self._engine.derived,
            firing=[(a.rule, a.severity, a.layer) for a in self._engine.active],
            violations=self._violations,
            errors=self.errors,
            coarse=self._coarse,
            low=self._low,
            details=[self._detail(a) for a in self._engine.active[:DETAILED]],
            info=(("folder", self.where.folder), ("page", self.where.page)),
        )

    def _detail(self, a: Alert) -> AlertDetail:
        rank = rank_of(a.rule, a.context)
        batch = "; ".join(self.batches(a.onset))
        return AlertDetail(a.rule, a.layer, a.onset, a.value, "" if rank is None else str(rank), batch)

    def _make_head(self) -> PageHead:
        return page_head(
            meta=self.meta,
            state=self.state,
            ended=self.ended,
            readings=self._readings,
            active=self._engine.active,
            transitions=self._engine.history,
            diagnosis=self._diagnosis,
            notices=tuple(self._notices.values()),
        )

    def _attempt(self, what: str, action: Callable[[], T]) -> T | None:
        try:
            return action()
        except Exception as error:
            self.errors += 1
            if what not in self._reported:
                self._reported.add(what)
                print(f"stabwatch agent: {what}: {type(error).__name__}: {error}", file=sys.stderr)
                traceback.print_exc(limit=8)
            return None


def _chunks(block: RecordBatch) -> Iterator[RecordBatch]:
    for i in range(0, len(block), CHUNK):
        part = slice(i, i + CHUNK)
        yield RecordBatch(block.layout, block.steps[part], block.times[part], block.rows[part])
