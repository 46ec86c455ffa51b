"""How sure a detector is, in words."""

from __future__ import annotations

from stabwatch.alerts.incidents import Confidence


def confidence_of(ratio: float, records: int) -> Confidence:
    """For what is `ratio` times over its threshold for so many records: 'likely' far over it or for long."""
    excess = min(max(ratio - 1, 0.0) / 4, 1.0)
    length = min(records / 20, 1.0)
    return "likely" if 0.3 * excess + 0.18 * length >= 0.2 else "possible"
