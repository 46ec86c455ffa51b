"""Output-logit divergence and softmax collapse."""

from __future__ import annotations

import math

import numpy as np

from stabwatch.alerts.blocks import Block
from stabwatch.alerts.features import DerivedSignal, Feature, PlainFeature, RunFeature, own_signals
from stabwatch.alerts.references import CALIBRATED, GROKKING, PALM, PROXIES
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array, Ints


class DriftFeature(RunFeature):
    """Drift of the output logits: how much farther the mean logsumexp is from zero than at the start.

    A model that starts far from zero and approaches it (inputs of a large scale) does not drift.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "output_logit_drift",
            "How much farther output_logit_logsumexp is from zero than its first value.",
            "nat",
            "run",
        ),
    )

    def __init__(self) -> None:
        super().__init__("output_logit", "output_logit_logsumexp")

    def _begin(self) -> None:
        self._first = math.nan

    def _observe(self, values: Array) -> dict[str, float] | None:
        now = self._one(self.signal, values)
        if not math.isfinite(now):
            return None
        if math.isnan(self._first):
            self._first = abs(now)
        return {self.gauges[0].name: max(abs(now) - self._first, 0.0), self.signal: now}

    measures = own_signals

    def observe_block(self, steps: Ints, values: Array) -> Block:
        """See `blocks`."""
        now = self._column(self.signal, values)
        rows = np.flatnonzero(np.isfinite(now))
        now = now[rows]
        if math.isnan(self._first) and len(rows):
            self._first = abs(float(now[0]))
        return self._many(rows, {self.gauges[0].name: np.maximum(np.abs(now) - self._first, 0.0), self.signal: now})


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (DriftFeature(), PlainFeature("softmax_collapse_ratio"))


RULES: tuple[Rule, ...] = (
    Rule(
        name="OutputLogitDrift",
        title="Output-logit divergence",
        family="output_logit",
        summary="The output logits drift away from zero.",
        description="The mean logsumexp of the output logits is {output_logit_logsumexp:.4g}, "
        "{output_logit_drift:.4g} farther from 0 than at the start.",
        thresholds=(
            Threshold(severity="critical", when=(Condition("output_logit_drift", above=300.0),), for_points=5),
            Threshold(severity="warning", when=(Condition("output_logit_drift", above=100.0),), for_points=5),
        ),
        abnormal=(Condition("output_logit_drift", above=50.0),),
        source="from 128 on the spacing of bfloat16 numbers is 1, so probabilities lose their first digit",
        remedy=(
            "Add a z-loss of 1e-4 times the mean square of the logsumexp.",
            "Lower the learning rate. Use weight decay on the output layer.",
        ),
        references=(PALM, PROXIES),
    ),
    Rule(
        name="SoftmaxCollapse",
        title="Softmax collapse",
        family="softmax_collapse_ratio",
        summary="Softmax collapse: the loss of most samples is exactly zero, so they give no gradient.",
        description="The loss of {softmax_collapse_ratio:.0%} of the samples is exactly zero.",
        thresholds=(
            Threshold(severity="warning", when=(Condition("softmax_collapse_ratio", above=0.8),), for_points=16),
        ),
        abnormal=(Condition("softmax_collapse_ratio", above=0.3),),
        source=f"{GROKKING}; {CALIBRATED}",
        remedy=(
            "If the model has learned all it should, stop training.",
            "If it should still generalise, use weight decay, StableMax, or a loss in higher precision.",
        ),
        references=(GROKKING,),
    ),
)
