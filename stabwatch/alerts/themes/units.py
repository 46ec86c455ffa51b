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
        summary="Many hidden units are dead: they are zero for every token.",
        description="{dead_units_ratio:.0%} of the inputs of {where} are zero for every token, "
        "{dead_units_ratio_rise:.0%} more than at the start.",
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
            "Lower the learning rate. Dead units do not recover, so resume from a checkpoint before the onset.",
            "Long term: GELU or leaky ReLU, warm-up, smaller biases.",
        ),
        references=(RELU,),
    ),
    Rule(
        name="SaturatedUnits",
        title="Saturated units",
        family="saturated_units_ratio",
        summary="Many hidden units are saturated for every token.",
        description="{saturated_units_ratio:.0%} of the units of {where} are saturated for every token, "
        "{saturated_units_ratio_rise:.0%} more than at the start.",
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
        source="as for dead units: four fifths of a layer pass no gradient back",
        remedy=(
            "Lower the learning rate. Saturated units hardly recover, so resume from a checkpoint before the onset.",
            "Long term: normalise before the activation, use smaller initial weights, or GELU or SiLU, not tanh.",
        ),
        references=(TANH,),
    ),
)
