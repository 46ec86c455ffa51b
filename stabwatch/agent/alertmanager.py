"""Sends alerts to an Alertmanager without Prometheus, with the labels and annotations of the Prometheus rules.

So routes, groups and inhibitions written for Prometheus also apply here (`exporters/alertmanager.yml`).
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any

from stabwatch.agent.receivers import Refused, post
from stabwatch.agent.where import Batches, Where, details, no_batches
from stabwatch.alerts import Alert
from stabwatch.alerts.promql import annotations_of
from stabwatch.alerts.rule import Rule

LOOK_SECONDS = 1.0
RESEND_SECONDS = 60.0
"""Firing alerts are repeated, because Alertmanager drops alerts that are not."""
EXPIRE_SECONDS = 240.0
"""Lifetime of an alert that is not repeated; the same as in Prometheus."""

Labels = tuple[tuple[str, str], ...]


class Alertmanager:
    """Sends the firing alerts to an Alertmanager, immediately when they change and then every minute.

    active: returns the firing alerts, or None while another agent writes for this run. A failed request is repeated a
    second later; `failed` is called once per series of failures.
    """

    name = "Alertmanager"

    def __init__(
        self,
        url: str,
        where: Where,
        rules: Sequence[Rule],
        active: Callable[[], Sequence[Alert] | None],
        *,
        token: str | None = None,
        failed: Callable[[], object] = lambda: None,
        batches: Batches = no_batches,
    ) -> None:
        self._url = url.rstrip("/") + "/api/v2/alerts"
        self._where, self._active, self._token, self._failed = where, active, token, failed
        self._batches = batches
        self._rules = {rule.name: rule for rule in rules}
        self._told: dict[Labels, dict[str, Any]] = {}
        self._due = 0.0
        self._failing = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="stabwatch-alertmanager", daemon=True)
        self._thread.start()

    def close(self, timeout: float = 5.0) -> None:
        """Send the last state. Alerts that still fire expire later."""
        self._stopping.set()
        self._thread.join(timeout)

    def _work(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            self._tell()
        self._tell()

    def _tell(self) -> None:
        active = self._active()
        if active is None:
            return
        now, clock = time.time(), time.monotonic()
        found = dict(self._alert(a) for a in active)
        over = {labels: alert for labels, alert in self._told.items() if labels not in found}
        if not over and found.keys() == self._told.keys() and (clock < self._due or not found):
            return
        sent = [{**a, "endsAt": _time(now + EXPIRE_SECONDS)} for a in found.values()]
        sent += [{**a, "endsAt": _time(now)} for a in over.values()]
        try:
            post(self._url, sent, self._token)
        except Refused as error:
            self._report(str(error))
            return
        self._told, self._due, self._failing = found, clock + RESEND_SECONDS, False

    def _alert(self, alert: Alert) -> tuple[Labels, dict[str, Any]]:
        name = {"alertname": f"Stabwatch{alert.rule}", "severity": alert.severity, "run": self._where.run}
        labels = name | ({"layer": alert.layer} if alert.layer else {})
        rule = self._rules.get(alert.rule)
        place = f"Layer {alert.layer}. " if alert.layer else ""
        run = self._where.run
        annotations = annotations_of(rule, alert.severity, run, place) if rule else {"summary": alert.summary}
        known = details(self._where, alert.to_dict(), rule, self._batches)
        known["value"] = None if alert.value is None else f"{alert.value:.4g}"
        known |= {"onset": alert.onset, "batch": "; ".join(known.pop("batches"))}
        told = ("host", "folder", "page_url", "value", "onset", "rank", "batch", "runbook_url")
        annotations |= {name: "" if known[name] is None else str(known[name]) for name in told}
        return tuple(sorted(labels.items())), {
            "labels": labels,
            "annotations": annotations,
            "startsAt": _time(alert.time),
        }

    def _report(self, reason: str) -> None:
        if not self._failing:
            self._failing = True
            self._failed()
            print(
                f"stabwatch agent: the Alertmanager did not accept the alerts: {reason}.", file=sys.stderr, flush=True
            )


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()
