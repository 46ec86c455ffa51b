"""Targets that a program makes from what the model says, and that run away with it."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from stabwatch.alerts.features import DerivedSignal, Feature, RunFeature
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array, Bools, median

FEW, STEPS = 4, 16
"""Looks at the targets whose median is a level, and steps between two looks."""
LEAST = 0.1
"""Smallest size from which growth is counted: values that begin next to zero may grow to what rewards are."""
FAST = 1.6
"""Growth over four looks, 64 steps and more, that is fast."""
EXPLODED = 100.0
"""Times the first size from which on one look is enough."""
LOOKS = 3 * FEW
"""Looks over which the growth is followed."""
APART = 2.0
"""Targets over outputs in root mean square, or the reverse, up to which the one follows the other."""
SAME_DATA = 3.0
"""Shift of the batches up to which the data are the same."""


class RunawayFeature(RunFeature):
    """How large the targets of `mse_loss` and its kin have become, and whether they grow as fast as before.

    Only where outputs follow the targets, or have followed them until they ran away for good, and the inputs stay what
    they were: then the program makes them grow.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal("target_growth_ratio", f"Targets over their first size, at least {LEAST:g}.", "ratio", "run"),
        DerivedSignal(
            "target_doubling_ratio",
            f"Growth of the logarithm of the targets in the last {FEW} looks over that in the {FEW} before; 0 where "
            f"they grow less than {FAST:g} times, 1 where they are {EXPLODED:g} times as large as at first.",
            "ratio",
            "run",
        ),
    )

    def __init__(self) -> None:
        super().__init__("target_growth", "target_rms", "target_size_ratio", "batch_shift_ratio")

    def _begin(self) -> None:
        self._sizes: deque[float] = deque(maxlen=LOOKS)
        self._shifts: deque[float] = deque(maxlen=LOOKS)
        self._first: list[float] = []
        self._next = -math.inf
        self._followed = 0

    def _observe(self, values: Array) -> dict[str, float] | None:
        size, ratio, shift = (self._one(signal, values) for signal in self._columns.signals)
        if shift == shift:
            self._shifts.append(shift)
        if not math.isfinite(size + ratio):
            return None
        self._first = self._first if len(self._first) == FEW else [*self._first, size]
        growth = size / max(LEAST, median(np.array(self._first)))
        follows = size > 0 and 1 / APART < ratio < APART
        same = not self._shifts or median(np.array(self._shifts)) <= SAME_DATA
        if growth > EXPLODED and follows and same:
            return self._told(growth, 1.0, size)
        if self._step < self._next:
            return None
        self._next = self._step + STEPS
        self._followed += follows
        if not follows and (self._followed < FEW or ratio <= 1):
            self._sizes.clear()
            return None
        self._sizes.append(size)
        if len(self._sizes) < LOOKS or not self._shifts or not same:
            return None
        before, then, now = np.log(np.array(self._sizes)).reshape(3, FEW)
        old, new = (float(np.median(b) - np.median(a)) for a, b in ((before, then), (then, now)))
        growth *= math.exp(float(np.median(now))) / size
        goes_on = follows or (old > math.log(FAST) and now[-1] - now[0] > math.log(FAST) / 2)  # and is no jump
        fast = old > 0 and new > math.log(FAST) and goes_on
        return self._told(growth, new / old if fast else 0.0, size)

    def _told(self, *numbers: float) -> dict[str, float]:
        return dict(zip((*(g.name for g in self.gauges), "target_rms"), numbers, strict=True))

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
            Threshold(
                severity="warning",
                when=(Condition("target_growth_ratio", above=EXPLODED), Condition("target_doubling_ratio", above=0.8)),
            ),
        ),
        abnormal=(Condition("target_growth_ratio", above=5.0), Condition("target_doubling_ratio", above=0.8)),
        source="twenty times, and as fast as before: values that near what rewards allow grow more and more slowly; "
        "a hundred times at once",
        remedy=(
            "Values: a target network that follows slowly, clipped or scaled rewards, a discount below 1, the end of "
            "an episode masked.",
            "SAC: can the policy have the entropy that its coefficient aims at? Bound the coefficient.",
            "Is a teacher or an average trained with the student, or without its normalisation?",
        ),
        references=("van Hasselt et al. 2018, Deep Reinforcement Learning and the Deadly Triad, arXiv:1812.02648",),
        fact=True,
    ),
)
