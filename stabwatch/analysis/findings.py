"""A finding: one thing that happened in a training log."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from stabwatch.alerts.rule import Severity

Kind = Literal[
    "loss_spike",
    "loss_outliers",
    "early_hump",
    "level_shift",
    "divergence",
    "nonfinite",
    "not_learning",
    "plateau",
    "reinitialisation",
    "gradient_explosion",
    "gradient_outliers",
    "loss_scale_collapse",
    "loss_scale_search",
    "slowdown",
    "stall",
    "restart",
    "resume",
    "learning_rate_jump",
    "learning_rate_zero",
    "too_good",
    "error",
]
"""What happened. `docs/analyze.md` says of each what it means and when it is given."""


@dataclass(frozen=True)
class Finding:
    """One event of a run.

    step, end_step: first and last step of it; end_step is None when it lasts to the end of the log. points: records
    that it lasted. size: how many times the usual value the worst one was (seconds for a stall, steps for a restart),
    NaN where there is no such number. confidence: 0 to 1, a rank and not a probability. line: of the log, 1-based, -1
    where the format has none. text: one sentence. evidence: the numbers behind it.
    """

    kind: Kind
    severity: Severity
    step: int
    end_step: int | None
    points: int
    size: float
    confidence: float
    line: int
    text: str
    evidence: tuple[str, ...] = ()

    @property
    def trouble(self) -> bool:
        """More than information."""
        return self.severity != "info"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def confidence_of(ratio: float, points: int) -> float:
    """Confidence of a finding that is `ratio` times over its threshold for `points` records: 0.5 to 0.98."""
    over = min(max(ratio - 1, 0.0) / 4, 1.0)
    long = min(points / 20, 1.0)
    return round(0.5 + 0.3 * over + 0.18 * long, 2)
