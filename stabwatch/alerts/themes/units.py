"""Dead and saturated units."""

from __future__ import annotations

from stabwatch.alerts.features import Feature, rising
from stabwatch.alerts.references import CALIBRATED, RELU, TANH
from stabwatch.alerts.rule import Condition, Rule, Threshold


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (rising("dead_units_ratio"), rising("saturated_units_ratio"))


RULES: tuple[Rule, ...] = (
    Rule(
        name="DeadUnits",
        title="Dead units",
        family="dead_units_ratio",
        summary="Hidden units die.",
        description="{dead_units_ratio:.0%} of the inputs of {where} are zero for every token, "
        "{dead_units_ratio_rise:.0%} more than at first.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("dead_units_ratio", above=0.8), Condition("dead_units_ratio_rise", above=0.3)),
                for_points=3,
            ),
        ),
        abnormal=(Condition("dead_units_ratio", above=0.5), Condition("dead_units_ratio_rise", above=0.2)),
        source=f"{CALIBRATED}",
        remedy=(
            "Lower the learning rate; dead units stay dead, so resume from before the onset.",
            "For good: GELU or leaky ReLU, warm-up, smaller biases.",
        ),
        references=(RELU,),
    ),
    Rule(
        name="SaturatedUnits",
        title="Saturated units",
        family="saturated_units_ratio",
        summary="Hidden units saturate.",
        description="{saturated_units_ratio:.0%} of the units of {where} are saturated for every token, "
        "{saturated_units_ratio_rise:.0%} more than at first.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(
                    Condition("saturated_units_ratio", above=0.8),
                    Condition("saturated_units_ratio_rise", above=0.3),
                ),
                for_points=3,
            ),
        ),
        abnormal=(Condition("saturated_units_ratio", above=0.5), Condition("saturated_units_ratio_rise", above=0.2)),
        source="as dead units: four fifths of a layer pass no gradient back",
        remedy=(
            "Lower the learning rate; resume from before the onset, as saturated units hardly come back.",
            "For good: normalise before the activation, initialise smaller, or use GELU or SiLU in place of tanh.",
        ),
        references=(TANH,),
    ),
)
