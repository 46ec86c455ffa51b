"""Where the training process gets its alerts: from the agent, or from an engine of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from stabwatch.runlog import Event, RecordBatch, RecordLayout, RunLog

if TYPE_CHECKING:
    from stabwatch.alerts import Alert, Engine

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stabwatch.alerts import Alert, Engine


POLL_SECONDS = 0.25


class AlertSource(Protocol):
    """Where alerts come from. Called in the writer's thread."""

    def record(self, table: RecordLayout, step: int, now: float, slots: NDArray[np.float32]) -> Sequence[Alert]:
        """A record was made."""

    def restart(self, step: int) -> None:
        """The run was set back: records from before `step` count no more."""

    def announce(self, event: Event) -> None:
        """A change was announced; its record is yet to come."""


class AgentAlerts:
    """Hears the alerts that an agent writes into the run log."""

    def __init__(self, run_dir: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = RunLog(run_dir)
        self._log.poll_events()  # of an earlier run in the same folder
        self._clock = clock
        self._due = 0.0

    def record(self, table: RecordLayout, step: int, now: float, slots: NDArray[np.float32]) -> Sequence[Alert]:
        """Alerts that were written since; the log is looked at four times a second at most."""
        if self._clock() < self._due:
            return ()
        self._due = self._clock() + POLL_SECONDS
        events = [e for e in self._log.poll_events() if e.kind == "alert"]
        if not events:
            return ()
        from stabwatch.alerts import Alert

        return [Alert.from_event(e) for e in events]

    def restart(self, step: int) -> None:
        """An agent sees for itself."""

    def announce(self, event: Event) -> None:
        """An agent reads of it."""


class LocalEngine:
    """Judges each record with the rules, here.

    write: told each alert, when there is no agent to write it.
    """

    def __init__(self, rules: str | None, write: Callable[[Event], None] | None) -> None:
        from stabwatch.alerts import RULES, Engine
        from stabwatch.alerts.user_rules import load_rules

        self._make: Callable[[], Engine] = lambda: Engine(load_rules(rules) if rules else RULES)
        self._judge = (0, self._make())
        """The first step that counts, and the engine; replaced together, as two threads look at them."""
        self._write = write

    def record(self, table: RecordLayout, step: int, now: float, slots: NDArray[np.float32]) -> Sequence[Alert]:
        """The transitions of this record."""
        first, engine = self._judge
        if step < first:
            return ()
        alerts = engine.observe(RecordBatch(table, np.array([step]), np.array([now]), slots[None]))
        for alert in alerts if self._write is not None else ():
            self._write(alert.to_event())  # type: ignore[misc]
        return alerts

    def restart(self, step: int) -> None:
        """Judge anew: what was normal before a fault is learned again."""
        self._judge = (step, self._make())

    def announce(self, event: Event) -> None:
        """What was usual for the data says nothing from its step on."""
        self._judge[1].observe_event(event)
