"""What root causes are searched in, and what one is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stabwatch.alerts.origins import Origin
from stabwatch.alerts.rule import RUNBOOKS, Alert
from stabwatch.alerts.run_context import RunContext

TOGETHER = 8
"""Onsets within this many steps have no reliable order, because signals are sampled."""
RECENT = 32
"""A problem within this many steps after a jump of the learning rate is attributed to it."""


@dataclass(frozen=True)
class Evidence:
    """The data in which root causes are searched.

    alerts: all alerts above information, in order of onset; none if only detectors found something. notes: alerts of
    information. onset: first step outside a normal range, without stopped processes if there is anything else.
    spacing: steps between two records. watched: stabwatch wrote the log, not another trainer.
    """

    alerts: Sequence[Alert]
    notes: Sequence[Alert]
    memory: RunContext
    onset: int
    spacing: float = 1.0
    watched: bool = True

    @property
    def together(self) -> float:
        """Onsets within this many steps have no reliable order."""
        return TOGETHER * self.spacing

    @property
    def recent(self) -> float:
        """A problem within this many steps after a jump of the learning rate is attributed to it."""
        return RECENT * self.spacing

    @property
    def context(self) -> dict[str, float]:
        """Numbers of the run when the first alert fired; empty without an alert."""
        return self.alerts[0].context if self.alerts else {}

    @property
    def first_origin(self) -> Origin | None:
        """Where the first value that is not finite was made, if that was traced and is what NonFinite began with."""
        began = min((a.onset for a in self.of("NonFinite")), default=None)
        if began is None:
            return None
        found = [o for o in self.memory.origins if o.since <= began <= o.step]
        return min(found, key=lambda o: o.place == "unknown", default=None)

    def of(self, *rules: str) -> list[Alert]:
        """Alerts of some rules."""
        return [a for a in self.alerts if a.rule in rules]

    def begins_with(self, *rules: str) -> bool:
        """Whether one of them left its range together with the first onset, or just after."""
        return any(a.onset <= self.onset + self.together for a in self.of(*rules))


@dataclass(frozen=True)
class Found:
    """Evidence of a root cause. leads: it comes before the causes that the rules name; otherwise after the first."""

    since_step: int
    evidence: tuple[str, ...]
    layers: tuple[str, ...] = ()
    confidence: float = 0.8
    leads: bool = True


@dataclass(frozen=True)
class RootCause:
    """One cause. `find` returns None if it does not apply."""

    name: str
    title: str
    find: Callable[[Evidence], Found | None]
    remedy: tuple[str, ...]
    references: tuple[str, ...] = ()

    @property
    def runbook_url(self) -> str:
        """Page with the remedy."""
        return f"{RUNBOOKS}/{self.name}.md"
