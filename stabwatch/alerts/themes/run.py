"""The end of the run itself."""

from __future__ import annotations

from stabwatch.alerts.features import Feature
from stabwatch.alerts.rule import Rule


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return ()


RULES: tuple[Rule, ...] = (
    Rule(
        name="TrainingStopped",
        title="Training stopped",
        family="run",
        summary="Training stopped without finishing, or has stalled.",
        description="{what}",
        source="the end event; or no record for 20 median steps, 60 s, and twice the longest earlier pause",
        remedy=(
            "Check the end of the training's own output: out of memory, a lost node, a killed job?",
            "First check which other alerts fired before the end; then resume from the last good checkpoint.",
        ),
    ),
)
