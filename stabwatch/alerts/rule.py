"""Rules and alerts. A rule only compares derived gauges with constants."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stabwatch.runlog import Event, plain

Severity = Literal["critical", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("critical", "warning", "info")
RUNBOOKS = "https://github.com/stabwatch/stabwatch/blob/main/docs/runbooks"


@dataclass(frozen=True)
class Condition:
    """`gauge > above` and/or `gauge < below`. NaN (not measured) never satisfies it."""

    gauge: str
    above: float | None = None
    below: float | None = None

    def holds(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether each value meets the condition."""
        met = ~np.isnan(values) if self.above is None else values > self.above
        return met if self.below is None else met & (values < self.below)

    def __str__(self) -> str:
        parts = [f"{self.gauge} > {self.above:g}"] if self.above is not None else []
        parts += [f"{self.gauge} < {self.below:g}"] if self.below is not None else []
        return " and ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """One severity of a rule. It fires when all conditions hold at `for_points` measured points in a row.

    summary: replaces the summary of the rule if this severity means something else.
    """

    severity: Severity
    when: tuple[Condition, ...]
    for_points: int = 1
    summary: str = ""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One entry of the catalogue.

    title: the cause that it indicates, for the diagnosis.
    family: the feature (group of derived gauges, see `themes/`) that the rule reads; its series share a layer axis.
    thresholds: by severity, the highest first. abnormal: the conditions for 'outside the normal range'. Each
    threshold implies them. The onset is the first step of the unbroken span outside.
    A point is judged if the first gauge of the first threshold was measured.
    warm_up: measured points of a series before it is judged. resolve_after: points in a row within the
    normal range that resolve an alert. source: where the threshold comes from.
    """

    name: str
    title: str
    family: str
    summary: str
    description: str
    remedy: tuple[str, ...]
    source: str
    thresholds: tuple[Threshold, ...] = ()
    abnormal: tuple[Condition, ...] = ()
    warm_up: int = 0
    resolve_after: int = 5
    references: tuple[str, ...] = ()
    fact: bool = False
    """It states a fact of the set-up or of the loop and no symptom: it comes before all that began with it or later."""
    began: str = ""
    """A gauge: steps before the first point outside the normal range at which it began."""
    muted: tuple[str, ...] = ()
    """Patterns (`fnmatch`) of layers for which the user has muted the rule."""

    @property
    def alert(self) -> str:
        """Name of the alert in Prometheus: `Stabwatch` + name."""
        return f"Stabwatch{self.name}"

    @property
    def severity(self) -> Severity:
        """The highest severity that the rule can reach."""
        return self.thresholds[0].severity if self.thresholds else "critical"

    @property
    def runbook_url(self) -> str:
        """Page with the remedy."""
        return f"{RUNBOOKS}/{self.name}.md"


@dataclass(frozen=True)
class Alert:
    """One rule on one series, firing or resolved; also the payload of an `alert` event.

    step: when it fired or resolved. onset: first measured step outside the normal range. context: numbers of the run
    just before the onset (`*_at_onset`) and when it fired, for the diagnosis.
    """

    rule: str
    severity: str
    state: str
    signal: str
    layer: str
    step: int
    onset: int
    time: float
    value: float | None
    threshold: float | None
    summary: str
    description: str
    context: dict[str, float] = field(default_factory=dict, compare=False)

    @property
    def since(self) -> int:
        """The earliest step at which it can have begun: the one after the last record before the onset.

        It equals the onset if every step is measured.
        """
        before = self.context.get("step_at_onset")
        return self.onset if before is None else min(int(before) + 1, self.onset)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for events.jsonl and JSON."""
        return asdict(self)

    @property
    def runbook_url(self) -> str:
        """Page with the remedy."""
        return f"{RUNBOOKS}/{self.rule}.md"

    def to_event(self) -> Event:
        """The event of the run log. NaN and infinities become null."""
        data = self.to_dict()
        return Event("alert", data.pop("time"), data.pop("step"), plain(data))

    @classmethod
    def from_event(cls, event: Event) -> Alert:
        """Inverse of `to_event`, except for NaN and infinities."""
        known = {f.name for f in fields(cls)}
        return cls(step=event.step or 0, time=event.time, **{k: v for k, v in event.data.items() if k in known})
