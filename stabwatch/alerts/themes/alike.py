"""Samples of a batch that are all the same."""

from __future__ import annotations

import math

from stabwatch.alerts.features import DerivedSignal, Feature, RunFeature, own_signals
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array


class AlikeFeature(RunFeature):
    """The smallest share of samples so far that equal the first one of their batch.

    A batch of samples that are all the same comes in healthy runs too: an environment in which all have reached the
    goal. Samples that never differed do not.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal("input_alike_least_ratio", "Smallest input_alike_ratio so far.", "ratio", "run"),
    )

    def __init__(self) -> None:
        super().__init__("input_alike_ratio", "input_alike_ratio")

    def _begin(self) -> None:
        self._least = math.inf

    def _observe(self, values: Array) -> dict[str, float] | None:
        now = self._one(self.signal, values)
        if math.isnan(now):
            return None
        self._least = min(self._least, now)
        return {self.gauges[0].name: self._least, self.signal: now}

    measures = own_signals


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (AlikeFeature(),)


RULES: tuple[Rule, ...] = (
    Rule(
        name="InputsConstant",
        title="All samples of a batch are the same",
        family="input_alike_ratio",
        summary="The samples of each batch have been all the same: there is nothing to tell them apart by.",
        description="{input_alike_ratio:.0%} of the samples of a batch equal its first one.",
        thresholds=(
            Threshold(severity="warning", when=(Condition("input_alike_least_ratio", above=0.999),), for_points=4),
        ),
        abnormal=(Condition("input_alike_least_ratio", above=0.999),),
        source="all of eight samples and more, from the first point on, at four points: an environment that begins in "
        "one state, or in which all reach the goal, differs at other times",
        remedy=(
            "Print a batch. Are pixels divided as whole numbers, or scaled twice? Then each input is zero.",
            "Is each token the unknown one? Then the tokenizer does not belong to the data.",
            "Look for a mask, a clamp or a padding that covers all of the input.",
        ),
        fact=True,
    ),
)
