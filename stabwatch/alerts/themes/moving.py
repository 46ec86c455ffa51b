"""Targets that a program makes from what the model says, and that run away with it."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from stabwatch.alerts.features import DerivedSignal, Feature, RunFeature
from stabwatch.alerts.objectives import EQUAL
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array, Bools, median

FEW = 4
"""Looks at the targets, each sixteen steps after the one before, whose median is a level."""
LOOKS = 3 * FEW
"""Looks over which the growth is followed."""
APART = 1.5
"""Targets over outputs in root mean square, or the reverse, up to which the one follows the other."""
ALIKE = 3.0
"""Shift of the batches up to which the data are the same."""


class RunawayFeature(RunFeature):
    """How large the targets of the trained loss have become, and whether they grow as fast as before.

    Only where outputs follow the targets and the inputs stay what they were: then the program makes them grow.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal("target_growth_ratio", "Targets over their first size, at least 1.", "ratio", "run"),
        DerivedSignal(
            "target_doubling_ratio",
            f"Growth of the logarithm of the targets in the last {FEW} looks over that in the {FEW} before; 0 where "
            "they grow by less than a fifth.",
            "ratio",
            "run",
        ),
    )

    def __init__(self) -> None:
        super().__init__(
            "target_growth", "target_rms", "target_size_ratio", "loss", "compared_loss", "batch_shift_ratio"
        )

    def _begin(self) -> None:
        self._sizes: deque[float] = deque(maxlen=LOOKS)
        self._shifts: deque[float] = deque(maxlen=LOOKS)
        self._first: list[float] = []

    def _observe(self, values: Array) -> dict[str, float] | None:
        size, ratio, loss, compared, shift = (self._one(signal, values) for signal in self._columns.signals)
        if shift == shift:
            self._shifts.append(shift)
        if not math.isfinite(size + ratio) or not abs(loss - compared) <= EQUAL * abs(compared):
            return None
        self._first = self._first if len(self._first) == FEW else [*self._first, size]
        if size <= 0 or not 1 / APART < ratio < APART:
            self._sizes.clear()
            return None
        self._sizes.append(size)
        if len(self._sizes) < LOOKS or not self._shifts or median(np.array(self._shifts)) > ALIKE:
            return None
        before, then, now = np.log(np.array(self._sizes)).reshape(3, FEW)
        old, new = (float(np.median(b) - np.median(a)) for a, b in ((before, then), (then, now)))
        growth = float(np.exp(np.median(now))) / max(1.0, median(np.array(self._first)))
        doubling = new / old if old > 0 and new > math.log(1.2) else 0.0
        return dict(zip((g.name for g in self.gauges), (growth, doubling), strict=True)) | {"target_rms": size}

    def measures(self, values: Array) -> Bools:
        """See `blocks`: each record counts."""
        return np.ones(len(values), dtype=bool)


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (RunawayFeature(),)


RULES: tuple[Rule, ...] = (
    Rule(
        name="TargetsRunAway",
        title="The targets run away with the model",
        family="target_growth",
        summary="The targets that the program makes grow with what the model says, faster and faster: neither comes to "
        "an end.",
        description="The targets are {target_rms:.3g}, {target_growth_ratio:.3g} times what they were at first, while "
        "the inputs are what they were; they grow {target_doubling_ratio:.2g} times as fast as before.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("target_growth_ratio", above=20.0), Condition("target_doubling_ratio", above=0.8)),
                for_points=2,
            ),
        ),
        abnormal=(Condition("target_growth_ratio", above=5.0), Condition("target_doubling_ratio", above=0.8)),
        source="twenty times, and as fast as before: values that near what rewards allow grow more and more slowly",
        remedy=(
            "Values: a target network that follows slowly, clipped or scaled rewards, a discount below 1, the end of "
            "an episode masked.",
            "SAC: can the policy have the entropy that its coefficient aims at? Bound the coefficient.",
            "Is a teacher or an average trained with the student, or without its normalisation?",
        ),
        references=("van Hasselt et al. 2018, Deep Reinforcement Learning and the Deadly Triad, arXiv:1812.02648",),
    ),
)
