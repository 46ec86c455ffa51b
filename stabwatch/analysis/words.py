"""Numbers as words, for what is said of a log."""

from __future__ import annotations


def format_seconds(amount: float) -> str:
    """'45 s', '12 min', '3.5 h'."""
    if amount < 120:
        return f"{amount:.3g} s"
    return f"{amount / 60:.0f} min" if amount < 7200 else f"{amount / 3600:.1f} h"
