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
        title="The process stopped",
        family="run",
        summary="Training stopped without finishing, or stands still.",
        description="{what}",
        source="the end event; no record for 20 median steps, 60 s, and twice the longest pause before",
        remedy=(
            "Look at the end of the training's own output: out of memory, a lost node, a killed job?",
            "Resume from the last checkpoint; look first at what else fired here before the end.",
        ),
    ),
)
