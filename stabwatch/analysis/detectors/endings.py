"""Incidents that last to the end of the log."""

from __future__ import annotations

from typing import Any

from stabwatch.alerts.incidents import Incident
from stabwatch.alerts.rule import Severity
from stabwatch.analysis.readers.log import Column


def to_the_end(
    column: Column, start: int, text: str, *, condition: str, severity: Severity = "warning", **more: Any
) -> Incident:
    """About the records of a column from index `start` on. more: other fields of the incident."""
    return Incident(
        condition=condition,
        severity=severity,
        first_step=int(column.steps[start]),
        last_step=None,
        records=len(column) - start,
        line=int(column.lines[start]),
        text=text,
        **more,
    )
