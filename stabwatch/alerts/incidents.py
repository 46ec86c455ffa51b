"""Incidents: what happened in a run, in one form for rules (from their alerts) and detectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from stabwatch.alerts.rule import SEVERITIES, Alert, Severity

Confidence = Literal["certain", "likely", "possible"]
"""Confidence of an incident or a cause. docs/reports.md tells how often first causes of each word are right."""
FoundBy = Literal["rule", "detector"]
"""A rule judges record after record, as in a live run. A detector reads the whole curve in hindsight."""

LEVEL_OF_LOSS = ("LossSpike", "LossShift", "LossDivergence", "LossLostAtRateJump")
"""Rules that tell of a loss above its level: where it stays there, one of them may fire when another is over."""


def is_over(rule: str, onset: int, firing: Iterable[tuple[str, int]]) -> bool:
    """Has what a rule told returned to normal? firing: rules that fire now, with the first step of each."""
    also = LEVEL_OF_LOSS if rule in LEVEL_OF_LOSS else ()
    return not any(other == rule or (other in also and since >= onset) for other, since in firing)


@dataclass(frozen=True)
class Incident:
    """One thing that happened in a run.

    condition: name in the catalogue of conditions. text: one sentence. evidence: the numbers behind it.
    signal, layers, rank: where; the layer affected first comes first. '' and None if it concerns the whole run.
    first_step: first step outside the normal range. last_step: None if it lasts to the end of the log.
    records: how many records it lasted, None if unknown. ratio: the worst value over the usual value
    (seconds for a pause, steps for a restart), None if there is no such number.
    line: in a text log, from 1. record: in a run folder, from 0.
    found_by: both, if a rule and a detector found the same thing. live_step: step at which the first alert fired,
    None if no rule found it. alerts: the transitions of its rules; not part of the JSON.
    """

    condition: str
    severity: Severity
    first_step: int
    last_step: int | None
    text: str
    confidence: Confidence = "likely"
    evidence: tuple[str, ...] = ()
    signal: str = ""
    layers: tuple[str, ...] = ()
    rank: int | None = None
    records: int | None = None
    ratio: float | None = None
    line: int | None = None
    record: int | None = None
    found_by: tuple[FoundBy, ...] = ("detector",)
    live_step: int | None = None
    alerts: tuple[Alert, ...] = field(default=(), compare=False, repr=False)

    @property
    def is_problem(self) -> bool:
        """Severity above information."""
        return self.severity != "info"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the alerts."""
        data = asdict(self)
        del data["alerts"]
        return data


@dataclass
class AlertSpan:
    """One rule on one series, from onset to resolution. Its severity may change in between.

    fired: step at which each severity was first reached. until: step of the resolution, None without one.
    worst: the transition of the highest severity. alerts: all transitions.
    """

    rule: str
    signal: str
    layer: str
    onset: int
    worst: Alert
    fired: dict[str, int] = field(default_factory=dict)
    until: int | None = None
    alerts: list[Alert] = field(default_factory=list)

    @property
    def severity(self) -> str:
        """The highest severity reached."""
        return self.worst.severity

    @property
    def fired_at(self) -> int:
        """Step of the first alert."""
        return min(self.fired.values())


def alert_spans(history: Iterable[Alert]) -> list[AlertSpan]:
    """Spans in order of onset, from all transitions of an engine in order."""
    done: list[AlertSpan] = []
    open_spans: dict[tuple[str, str, str], AlertSpan] = {}
    for alert in history:
        key = (alert.rule, alert.signal, alert.layer)
        if alert.state != "firing":
            if key in open_spans:
                span = open_spans.pop(key)
                span.until = alert.step
                span.alerts.append(alert)
            continue
        if key not in open_spans:
            open_spans[key] = AlertSpan(*key, alert.onset, alert)
            done.append(open_spans[key])
        span = open_spans[key]
        span.alerts.append(alert)
        span.fired.setdefault(alert.severity, alert.step)
        span.worst = gravest([span.worst, alert])
    return sorted(done, key=lambda s: (s.onset, s.fired_at))


def rule_incidents(history: Iterable[Alert]) -> list[Incident]:
    """Incidents of rules: each lasts from the first layer that fires until none does. In the order of the alerts."""
    spans = alert_spans(history)
    found: list[Incident] = []
    for rule in dict.fromkeys(span.rule for span in spans):
        group: list[AlertSpan] = []
        for span in sorted((s for s in spans if s.rule == rule), key=lambda s: s.fired_at):
            if group and not any(s.until is None or s.until >= span.fired_at for s in group):
                found.append(_incident(group))
                group = []
            group.append(span)
        found.append(_incident(group))
    return sorted(found, key=lambda incident: incident.live_step or 0)


def _incident(group: Sequence[AlertSpan]) -> Incident:
    worst = min(group, key=lambda s: rank(s.severity))
    ends = [s.until for s in group if s.until is not None]
    first = min(group, key=lambda s: (s.onset, s.fired_at))
    apart = first.worst.context.get("replica_difference_rank", -1.0)
    return Incident(
        condition=worst.rule,
        severity=_severity(worst.severity),
        first_step=first.onset,
        last_step=max(ends) if len(ends) == len(group) else None,
        text=worst.worst.description,
        signal=first.signal,
        layers=tuple(dict.fromkeys(s.layer for s in sorted(group, key=lambda s: (s.onset, s.fired_at)) if s.layer)),
        rank=int(apart) if apart >= 0 else None,
        found_by=("rule",),
        live_step=min(s.fired_at for s in group),
        alerts=tuple(alert for span in group for alert in span.alerts),
    )


def _severity(name: str) -> Severity:
    return next((severity for severity in SEVERITIES if severity == name), "info")


def gravest(alerts: list[Alert]) -> Alert:
    """The first alert of the highest severity."""
    return min(alerts, key=lambda alert: rank(alert.severity))


def worst_of(incidents: Iterable[Incident]) -> str:
    """The highest severity among incidents; 'calm' if none is above information."""
    return min((i.severity for i in incidents if i.is_problem), key=rank, default="calm")


def rank(severity: str) -> int:
    """0 for the highest severity; unknown severities rank last."""
    return next((place for place, known in enumerate(SEVERITIES) if known == severity), len(SEVERITIES))
