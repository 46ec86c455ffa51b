"""Sources of alerts for the training process: the agent, or a local engine."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from stabwatch.runlog import Event, RecordBatch, RecordLayout, RunLog
from stabwatch.runlog.attempts import surviving
from stabwatch.runlog.source import record_slice

if TYPE_CHECKING:
    from stabwatch.alerts import Alert, Engine

POLL_SECONDS = 0.25
LEARNED = 4096
"""Records of earlier attempts that an engine learns from, at least, where there are so many."""


class AlertSource(Protocol):
    """A source of alerts. Called in the writer's thread."""

    def record(self, layout: RecordLayout, step: int, now: float, values: NDArray[np.float32]) -> Sequence[Alert]:
        """Process one record, and return the alerts."""

    def restart(self, step: int) -> None:
        """The run was rolled back: ignore records before `step`."""

    def tell(self, event: Event) -> None:
        """Something happened in training. After an announced change, its record follows. Called while training."""


class AgentAlerts:
    """Reads the alerts that an agent writes to the run log."""

    def __init__(self, run_dir: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = RunLog(run_dir)
        self._log.poll_events()  # skip those of an earlier run in the same folder
        self._clock = clock
        self._due = 0.0

    def record(self, layout: RecordLayout, step: int, now: float, values: NDArray[np.float32]) -> Sequence[Alert]:
        """New alerts. The log is polled at most four times a second."""
        if self._clock() < self._due:
            return ()
        self._due = self._clock() + POLL_SECONDS
        events = [e for e in self._log.poll_events() if e.kind == "alert"]
        if not events:
            return ()
        from stabwatch.alerts import Alert

        return [Alert.from_event(e) for e in events]

    def restart(self, step: int) -> None:
        """Nothing to do: an agent reads it from the log."""

    def tell(self, event: Event) -> None:
        """Nothing to do: an agent reads it from the log."""


class LocalEngine:
    """Evaluates the rules on each record in this process.

    write: called with each alert, if no agent writes them.
    """

    def __init__(self, rules: str | None, write: Callable[[Event], None] | None) -> None:
        from stabwatch.alerts import RULES, Engine
        from stabwatch.alerts.user_rules import load_rules

        self._make: Callable[[], Engine] = lambda: Engine(load_rules(rules) if rules else RULES)
        self._engine = (0, self._make())
        """The first valid step, and the engine. Replaced together, because two threads read them."""
        self._write = write
        self._told: deque[Event] = deque()

    def learn(self, run_dir: Path, before: int) -> None:
        """Take the baselines of the rules from the run as it was before a step, if its log has it."""
        kept: deque[RecordBatch] = deque()
        for batch in surviving(RunLog(run_dir)):
            kept.append(record_slice(batch, 0, int((batch.steps < before).sum())))
            while sum(map(len, kept)) - len(kept[0]) > LEARNED:
                kept.popleft()
        for batch in kept:
            self._engine[1].observe(batch)

    def record(self, layout: RecordLayout, step: int, now: float, values: NDArray[np.float32]) -> Sequence[Alert]:
        """The alerts of this record."""
        first, engine = self._engine
        if step < first:
            return ()
        alerts: list[Alert] = []
        while self._told:
            event = self._told.popleft()
            alerts += engine.observe_event(event) if (event.step or 0) >= first else []
        alerts += engine.observe(RecordBatch(layout, np.array([step]), np.array([now]), values[None]))
        for alert in alerts if self._write is not None else ():
            self._write(alert.to_event())  # type: ignore[misc]
        return alerts

    def restart(self, step: int) -> None:
        """Start with a new engine, which learns new baselines."""
        self._engine = (step, self._make())

    def tell(self, event: Event) -> None:
        """A change discards the baselines of the data from its step on; all else is judged with the next record."""
        if event.kind == "change":
            self._engine[1].observe_event(event)
        else:
            self._told.append(event)
