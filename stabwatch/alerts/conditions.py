"""The catalogue of conditions: all that can be found in a run, by a rule, by a detector, or as a root cause.

A rule judges one record after the other, as live. A detector looks at the whole curve in hindsight. Where both know a
condition, it has one name, one title, one remedy and one runbook.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stabwatch.alerts.catalogue import RULES
from stabwatch.alerts.root_causes import ROOT_CAUSES
from stabwatch.alerts.rule import RUNBOOKS


@dataclass(frozen=True)
class KnownCondition:
    """One condition. remedy: empty for what needs nothing. runbook_url: empty where there is no page.

    rule: a rule finds it, live too. detector: a detector finds it in hindsight. root_cause: it explains others.
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
    "LearningRateSpike", "TrainingStopped",
)  # fmt: skip
"""Rules and root causes for which there is a detector too."""

_DETECTED: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "NotLearning",
        "Nothing is being learned",
        (
            "Check that gradients reach the parameters: requires_grad, a detached loss, frozen layers, skipped steps.",
            "Check that the optimizer holds the parameters of this model, and that its learning rate is not 0.",
            "Check that the labels belong to the inputs: shuffle both in the same order.",
            "Try to overfit one batch: a correct set-up does so in some hundred steps.",
        ),
    ),
    (
        "LossPlateau",
        "A plateau above what was reached before",
        ("Go back to the checkpoint of the best loss: the restart did not reach it again.",),
    ),
    (
        "Reinitialisation",
        "Training started from scratch",
        (
            "Look for what builds the model again at that step: a checkpoint that was not found, a stage that resets.",
            "Resume from the last checkpoint before it.",
        ),
    ),
    (
        "LossTooGood",
        "A loss too good to be true",
        (
            "Check the labels of one batch: are they all masked (-100), or equal to the input?",
            "Check the loss itself: a mean over nothing, a wrong shift, a constant target.",
        ),
    ),
    (
        "SlowSteps",
        "Steps have become slower",
        ("From that step on, look at the data loading, the network and the clocks of the accelerators.",),
    ),
    ("LossOutliers", "Single records of the loss are high", ()),
    ("EarlyLossHump", "The loss rises in the first records", ()),
    ("GradientNormOutliers", "Single records of the gradient norm are high", ()),
    ("LossScaleSearch", "The loss scale is searched for", ()),
    ("LearningRateZero", "The learning rate is 0 at the end", ()),
    ("TrainingPaused", "A pause without records", ()),
    ("RunRestarted", "A new run in the same log", ()),
    ("RunResumed", "The run was resumed from an earlier step", ()),
    ("LoggedError", "An error in the log that training survived", ()),
)
"""What only a detector finds: name, title, remedy."""


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
    """Title of a condition; the name itself where it is a rule of the user's."""
    known = CONDITIONS.get(name)
    return name if known is None else known.title
