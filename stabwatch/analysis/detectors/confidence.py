"""Confidence of detectors, in words."""

from __future__ import annotations

from stabwatch.alerts.incidents import Confidence


def confidence_of(ratio: float, records: int) -> Confidence:
    """Confidence of an excess by `ratio` over a threshold for some records: 'likely' if large or long."""
    excess = min(max(ratio - 1, 0.0) / 4, 1.0)
    length = min(records / 20, 1.0)
    return "likely" if 0.3 * excess + 0.18 * length >= 0.2 else "possible"
