"""The mode of the model in what a loop does between its steps: validations, which are to leave out dropout."""

from __future__ import annotations

import math

import numpy as np

from stabwatch.alerts.blocks import Block
from stabwatch.alerts.features import DerivedSignal, Feature, PlainFeature, RunFeature, own_signals
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array, Ints

MOST_CALLS = 0.75
"""Share of the calls of a pause that must be on inputs that came before: who generates from a prompt calls on more."""
OVER = 4
"""Intervals between such validations without another one, after which they are over."""


class ValidationFeature(RunFeature):
    """How often a set that came before was called without gradients in training mode.

    NaN where another model is an opponent: a generator shows what it makes of the same noise again and again.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "validations_in_training_mode",
            "Times in a row that the model was called in training mode without gradients on inputs of earlier such "
            "calls.",
            "1",
            "run",
        ),
    )

    def __init__(self) -> None:
        super().__init__("validation_in_training_ratio", "validation_in_training_ratio", "opponent_steps")

    def _begin(self) -> None:
        self._validated = 0
        self._last = self._interval = math.nan
        self._opposed = False

    def _observe(self, values: Array) -> dict[str, float] | None:
        share, opposed = (self._one(signal, values) for signal in self._columns.signals)
        self._opposed = self._opposed or opposed > 0
        if math.isnan(share):
            return None
        if self._step - self._last > OVER * self._interval:
            self._validated, self._interval = 0, math.nan
        if share >= MOST_CALLS:
            self._validated += 1
            self._interval, self._last = self._step - self._last, self._step
        return {self.gauges[0].name: math.nan if self._opposed else float(self._validated), self.signal: share}

    measures = own_signals

    def observe_block(self, steps: Ints, values: Array) -> Block | None:
        """See `blocks`."""
        shares, opposed = (self._column(signal, values) for signal in self._columns.signals)
        if self._validated or (shares >= MOST_CALLS).any():
            return None
        rows = np.flatnonzero(~np.isnan(shares))
        against = self._opposed | np.logical_or.accumulate(opposed > 0)
        self._opposed = bool(against[-1])
        none = np.where(against, math.nan, 0.0)
        return self._many(rows, {self.gauges[0].name: none[rows], self.signal: shares[rows]})


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (ValidationFeature(), PlainFeature("dropout_in_evaluation"))


RULES: tuple[Rule, ...] = (
    Rule(
        name="ValidatedInTrainingMode",
        title="Validated in training mode",
        family="validation_in_training_ratio",
        summary="The model is validated in training mode: dropout is on, and batch norm uses the statistics of the "
        "batch and adds them to its own.",
        description="{validations_in_training_mode:.0f} times the model was called without gradients in training mode "
        "on inputs that it had been called on so before.",
        thresholds=(Threshold(severity="warning", when=(Condition("validations_in_training_mode", above=1.0),)),),
        abnormal=(Condition("validations_in_training_mode", above=0.0),),
        source="the same inputs for the third time, without an opponent: a validation set comes again, what a model "
        "acts on or generates from does not",
        remedy=(
            "Call `model.eval()` before each validation and `model.train()` after it.",
            "What was measured so far understates the model, and differs from call to call: validate again.",
        ),
        fact=True,
    ),
    Rule(
        name="DropoutInEvaluation",
        title="Dropout is on in evaluation mode",
        family="dropout_in_evaluation",
        summary="Dropout is on while the model is in evaluation mode: its outputs there are random.",
        description="A function dropped numbers in a forward of the model in evaluation mode.",
        thresholds=(
            Threshold(severity="warning", when=(Condition("dropout_in_evaluation", above=0.0),), for_points=2),
        ),
        abnormal=(Condition("dropout_in_evaluation", above=0.0),),
        source="any, in two steps; a module that was set to training mode by itself is meant so",
        remedy=(
            "`F.dropout(x, p, training=self.training)`, or `nn.Dropout`.",
            "`scaled_dot_product_attention(..., dropout_p=p if self.training else 0.0)`.",
            "To sample predictions by dropout on purpose, set the layers of dropout alone to training mode.",
        ),
        fact=True,
    ),
)
