"""Dead and saturated units."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stabwatch.alerts.features import DerivedSignal, Feature, PlainFeature, own_signals, rising
from stabwatch.alerts.references import CALIBRATED, RELU, TANH
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array
from stabwatch.runlog import SeriesKey


class SaturatedFeature(PlainFeature):
    """The share of an activation's outputs at its bounds, and the smallest such share so far."""

    def __init__(self) -> None:
        super().__init__("activation_saturated_ratio")
        self._name = "activation_saturated_least_ratio"
        self.gauges = (DerivedSignal(self._name, "Smallest activation_saturated_ratio of a layer so far.", "ratio"),)
        self._least = np.empty(0)

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Feature."""
        super().bind(keys)
        self._least = np.append(self._least, np.full(len(self.layers) - len(self._least), np.inf))

    def restart(self) -> None:
        """See Feature."""
        super().restart()
        self._least[:] = np.inf

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """See Feature."""
        numbers = super().update(step, values)
        if numbers is None:
            return None
        now = numbers[self.signal]
        self._least = np.fmin(self._least, now)
        return numbers | {self._name: np.where(np.isnan(now), np.nan, self._least)}

    measures = own_signals


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (rising("dead_units_ratio"), rising("saturated_units_ratio"), SaturatedFeature())


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
    Rule(
        name="SaturatedFromStart",
        title="An activation is saturated from the start",
        family="activation_saturated_ratio",
        summary="Nearly all outputs of an activation function have been at its bounds from the first steps on: hardly "
        "any gradient comes through.",
        description="{activation_saturated_ratio:.0%} of the outputs of {where} are at its bounds, and never fewer "
        "than {activation_saturated_least_ratio:.0%}.",
        thresholds=(
            Threshold(
                severity="warning", when=(Condition("activation_saturated_least_ratio", above=0.8),), for_points=2
            ),
        ),
        abnormal=(Condition("activation_saturated_least_ratio", above=0.8),),
        source="four fifths, at each point from the first on: what comes into it is many times too large; with usual "
        "inputs and weights it is a few per cent",
        remedy=(
            "Scale the inputs to a mean of 0 and a deviation of 1: pixels by 255, states by their usual size.",
            "Use smaller initial weights, or a norm before the activation.",
        ),
        references=(TANH,),
    ),
)
