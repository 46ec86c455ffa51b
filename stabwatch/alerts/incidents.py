"""Alert transitions folded into stretches: from the first step outside the normal range to the end of the alert."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from stabwatch.alerts.rule import SEVERITIES, Alert


@dataclass
class AlertSpan:
    """One rule on one series, from onset to resolution; its severity may change on the way.

    fired: step at which each severity was first reached. until: step of the resolution, None when it never came.
    worst: the transition of the gravest severity.
    """

    rule: str
    signal: str
    layer: str
    onset: int
    worst: Alert
    fired: dict[str, int] = field(default_factory=dict)
    until: int | None = None

    @property
    def severity(self) -> str:
        """The gravest severity reached."""
        return self.worst.severity


def alert_spans(history: Iterable[Alert]) -> list[AlertSpan]:
    """Stretches by onset, from every transition of an engine in order."""
    done: list[AlertSpan] = []
    going: dict[tuple[str, str, str], AlertSpan] = {}
    for alert in history:
        key = (alert.rule, alert.signal, alert.layer)
        if alert.state != "firing":
            if key in going:
                going.pop(key).until = alert.step
            continue
        if key not in going:
            going[key] = AlertSpan(*key, alert.onset, alert)
            done.append(going[key])
        stretch = going[key]
        stretch.fired.setdefault(alert.severity, alert.step)
        stretch.worst = gravest([stretch.worst, alert])
    return sorted(done, key=lambda s: (s.onset, min(s.fired.values())))


def gravest(alerts: list[Alert]) -> Alert:
    """The first alert of the gravest severity."""
    return min(alerts, key=lambda alert: rank(alert.severity))


def rank(severity: str) -> int:
    """0 for the gravest severity; what is not known ranks last."""
    return SEVERITIES.index(severity) if severity in SEVERITIES else len(SEVERITIES)  # type: ignore[arg-type]
