"""The rules and the derived signals of all themes. Each theme is one module in `themes/`."""

from __future__ import annotations

from stabwatch.alerts.features import DerivedSignal, Feature
from stabwatch.alerts.rule import Rule
from stabwatch.alerts.themes import (
    activations,
    alike,
    attention,
    batches,
    bounds,
    collapse,
    course,
    evaluation,
    experts,
    fit,
    games,
    gradients,
    initial,
    leaks,
    logits,
    loss,
    lost,
    mistakes,
    moving,
    nonfinite,
    order,
    policy,
    policy_ratio,
    precision,
    ranks,
    run,
    scores,
    setup,
    standing,
    targets,
    tokens,
    units,
    updates,
    validation,
)

THEMES = (
    setup,
    lost,
    targets,
    mistakes,
    validation,
    alike,
    leaks,
    nonfinite,
    attention,
    logits,
    activations,
    gradients,
    loss,
    batches,
    course,
    bounds,
    initial,
    fit,
    collapse,
    moving,
    games,
    updates,
    standing,
    tokens,
    units,
    experts,
    precision,
    order,
    policy,
    policy_ratio,
    scores,
    evaluation,
    ranks,
    run,
)

RULES: tuple[Rule, ...] = tuple(rule for theme in THEMES for rule in theme.RULES)
BY_NAME: dict[str, Rule] = {rule.name: rule for rule in RULES}


def features() -> tuple[Feature, ...]:
    """The derived signals of all themes, with fresh state for one run."""
    return tuple(feature for theme in THEMES for feature in theme.features())


DERIVED: tuple[DerivedSignal, ...] = tuple(gauge for feature in features() for gauge in feature.gauges)
