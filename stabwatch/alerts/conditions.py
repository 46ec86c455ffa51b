"""The catalogue of conditions: everything that a rule, a detector or the diagnosis (root causes) can find in a run.

A rule judges record after record, as in a live run. A detector reads the whole curve in hindsight. A condition that
both can find has one name, one title, one remedy and one runbook.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stabwatch.alerts.catalogue import RULES
from stabwatch.alerts.root_causes import ROOT_CAUSES
from stabwatch.alerts.rule import RUNBOOKS


@dataclass(frozen=True)
class KnownCondition:
    """One condition. remedy: empty if no action is needed. runbook_url: empty if there is no page.

    rule: a rule finds it, also live. detector: a detector finds it in hindsight. root_cause: it explains other ones.
    """

    name: str
    title: str
    remedy: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    runbook_url: str = ""
    rule: bool = False
    detector: bool = False
    root_cause: bool = False


ALSO_DETECTED = (
    "LossSpike", "LossShift", "LossDivergence", "NonFinite", "GradientNormExplosion", "LossScaleCollapse",
    "LearningRateSpike", "LearningRateZero", "NotLearning", "TrainingStopped", "RewardCollapse", "KLRunaway",
    "EvaluationApart", "DiscriminatorCollapse",
)  # fmt: skip
"""Rules and root causes that a detector can also find."""

_DETECTED: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "LossPlateau",
        "A plateau above the earlier best loss",
        ("Go back to the checkpoint of the best loss: the restart did not reach it again.",),
    ),
    (
        "Reinitialisation",
        "Training started from scratch",
        (
            "Find the code that builds a new model at that step: a checkpoint that was not found, a stage that resets.",
            "Resume from the last checkpoint before that step.",
        ),
    ),
    (
        "LossTooGood",
        "Loss too good to be true",
        (
            "Check the labels of one batch: are they all masked (-100), or equal to the input?",
            "Check the loss itself: a mean over nothing, a wrong shift, a constant target.",
        ),
    ),
    (
        "SlowSteps",
        "Steps became slower",
        ("Check data loading, the network and the clocks of the accelerators from that step on.",),
    ),
    ("LossOutliers", "Single records of the loss are high", ()),
    ("EarlyLossHump", "The loss rises in the first records", ()),
    ("GradientNormOutliers", "Single records of the gradient norm are high", ()),
    ("LossScaleSearch", "The scaler searches for its loss scale", ()),
    ("TrainingPaused", "A pause without records", ()),
    ("RunRestarted", "Training begins again in the same log", ()),
    ("RunResumed", "The run was resumed from an earlier step", ()),
    ("LoggedError", "An error in the log, after which training continued", ()),
)
"""Conditions that only a detector finds: name, title, remedy."""


def _known() -> Iterator[KnownCondition]:
    for rule in RULES:
        yield KnownCondition(
            rule.name, rule.title, rule.remedy, rule.references, rule.runbook_url, True, rule.name in ALSO_DETECTED
        )
    for cause in ROOT_CAUSES:
        detected = cause.name in ALSO_DETECTED
        yield KnownCondition(
            cause.name, cause.title, cause.remedy, cause.references, cause.runbook_url, False, detected, True
        )
    for name, title, remedy in _DETECTED:
        yield KnownCondition(name, title, remedy, runbook_url=f"{RUNBOOKS}/{name}.md" if remedy else "", detector=True)


CONDITIONS: dict[str, KnownCondition] = {condition.name: condition for condition in _known()}


def title_of(name: str) -> str:
    """Title of a condition; for a custom rule, its name."""
    known = CONDITIONS.get(name)
    return name if known is None else known.title
