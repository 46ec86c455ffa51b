"""What an agent writes to the run log: each event once, whichever agent writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from stabwatch.agent.discovery import Lease
from stabwatch.alerts.held_up import KIND as HELD_UP
from stabwatch.runlog import Event, append_event

WRITTEN = ("alert", "end", HELD_UP)
"""Kinds of events that an agent writes."""
Identity = tuple[str | int, ...]


class Outbox:
    """Events of an agent that are not in the log yet, and the identities of those that are. lease: of the agent."""

    def __init__(self, run: Path, lease: Lease) -> None:
        self._run, self._lease = run, lease
        self.tell: list[Callable[[list[Event]], None]] = []
        """Called with the alert events that this agent has written."""
        self._written: set[Identity] = set()
        self._waiting: list[Event] = []

    def in_log(self, events: Iterable[Event]) -> None:
        """The log has these events already."""
        self._written.update(_identity(e) for e in events if e.kind in WRITTEN)

    def put(self, event: Event) -> None:
        """It is to be written."""
        self._waiting.append(event)

    def write(self) -> None:
        """Write events that are not in the log yet. Failed writes are retried."""
        if not self._waiting or not self._lease.held():
            return
        new: list[Event] = []
        try:
            while self._waiting:
                self._append(self._waiting[0], new)
                self._waiting.pop(0)
        finally:
            for tell in self.tell if new else ():
                tell(new)

    def _append(self, event: Event, new: list[Event]) -> None:
        if _identity(event) not in self._written:
            append_event(self._run, event)
            self._written.add(_identity(event))
            new += [event] if event.kind == "alert" else []


def _identity(event: Event) -> Identity:
    """The identity of an event, whichever agent writes it."""
    what = (str(event.data.get(k, "")) for k in ("rule", "signal", "layer", "state", "sink"))
    return (event.kind, *what, -1 if event.step is None else event.step)
