"""Inputs as a whole: samples of a batch that are all the same, and a size that grows without end."""

from __future__ import annotations

import math
from collections import deque

from stabwatch.alerts.features import DerivedSignal, Feature, RunFeature, own_signals
from stabwatch.alerts.objectives import OwnData
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array

FIRST, LAST = 4, 3
"""Looks at the input with which a run begins, and those at its end: the largest of one, the smallest of the other."""


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


class InputSizeFeature(RunFeature):
    """How much larger the input has become for good: noise of many levels, and samples of many sizes, come and go.

    NaN where the model makes its own data: what it is shown then depends on what it has learned.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "input_growth_ratio",
            f"Smallest of the last {LAST} sizes of the input over the largest of the first {FIRST}.",
            "ratio",
            "run",
        ),
    )

    def __init__(self) -> None:
        super().__init__("input_rms", "input_rms", "calls_without_gradient", "opponent_steps")

    def _begin(self) -> None:
        self._most = 0.0
        self._last: deque[float] = deque(maxlen=LAST)
        self._looks, self._own = 0, OwnData()

    def _observe(self, values: Array) -> dict[str, float] | None:
        now, acted, opposed = (self._one(signal, values) for signal in self._columns.signals)
        if not math.isfinite(now):
            return None
        self._looks += 1
        self._own.record(acted, opposed)
        self._most = max(self._most, now) if self._looks <= FIRST else self._most
        self._last.append(now)
        known = self._most > 0 and not self._own.made
        growth = min(self._last) / self._most if known and len(self._last) == LAST else math.nan
        return {self.gauges[0].name: growth, self.signal: now}

    measures = own_signals


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (AlikeFeature(), InputSizeFeature())


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
    Rule(
        name="InputsGrow",
        title="The inputs have grown",
        family="input_rms",
        summary="The inputs have become many times as large as they were at first, and are far from what "
        "initialisations expect.",
        description="The root mean square of the model's input is {input_rms:.4g}, and for three looks at it "
        "{input_growth_ratio:.3g} times that of the first steps or more.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("input_growth_ratio", above=20.0), Condition("input_rms", above=30.0)),
            ),
        ),
        abnormal=(Condition("input_growth_ratio", above=5.0),),
        source="twenty times the largest of four looks at the beginning, in each of the last three: pixels of 0 to 255 "
        "after those of 0 to 1 are 255 times as large; left out where the model makes its data",
        remedy=(
            "Does the data set write into what it keeps (`x -= mean` in `__getitem__`, `Normalize(inplace=True)` on a "
            "tensor in memory)? Then each epoch scales it once more: copy the sample first.",
            "Does another data set begin here that is not scaled?",
        ),
    ),
)
