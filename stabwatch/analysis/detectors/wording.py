"""Phrases of the detectors' sentences."""

from __future__ import annotations

from stabwatch.alerts.incidents import Confidence

FEW = 20
"""Number of records below which a sentence says how little the log shows."""


def number_of(count: int, what: str = "record") -> str:
    """'1 record', '12 records', '1,200 records'."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def how_sure(records: int, confidence: Confidence) -> str:
    """A sentence on the confidence of a judgement from few records, with a blank before it; empty for a long log."""
    return f" The log has only {number_of(records)}, so this is {confidence}, not certain." if records < FEW else ""


def digits_of(value: float) -> int:
    """How many digits a number is printed with, without zeros at its ends."""
    return len(f"{abs(value):.12g}".partition("e")[0].replace(".", "").strip("0"))
