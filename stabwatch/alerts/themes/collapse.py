"""Embeddings of all samples that become one point."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from stabwatch.alerts.features import DerivedSignal, Duration, Feature, RunFeature
from stabwatch.alerts.objectives import OwnData
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array, Bools, median

LEFT = 0.2
"""Of the largest distance between samples so far."""
USUAL = 5
"""Records of which the median is such a distance: one batch with an odd sample sets no measure."""
FEWEST = 1e-4
"""A distance that is one; below it all samples are alike from the start."""


class CollapseFeature(RunFeature):
    """For how many steps the samples have been next to one point, of what was apart before.

    What is compared: the targets of a loss, where the program makes them itself (those of the data do not come
    together); else the outputs, where no cross-entropy and no such loss says what they should be.
    NaN where the model makes its own data, or plays against another one.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal("embedding_apart_ratio", "How far samples are apart, over the largest so far.", "ratio", "run"),
        DerivedSignal(
            "embedding_collapsed_steps", f"Steps for which embedding_apart_ratio has been below {LEFT:g}.", "1", "run"
        ),
    )

    def __init__(self) -> None:
        super().__init__(
            "embedding_apart",
            "wanted_deviation",
            "output_deviation",
            "output_spread_ratio",
            "token_loss",
            "calls_without_gradient",
            "opponent_steps",
        )

    def _begin(self) -> None:
        self._most = {"wanted_deviation": 0.0, "output_deviation": 0.0}
        self._last: dict[str, deque[float]] = {name: deque(maxlen=USUAL) for name in self._most}
        self._near = Duration()
        self._own = OwnData()
        self._compared = False

    def _observe(self, values: Array) -> dict[str, float] | None:
        wanted, output, spread, tokens, acted, opposed = (self._one(s, values) for s in self._columns.signals)
        self._own.record(acted, opposed)
        self._compared = self._compared or not math.isnan(spread) or not math.isnan(tokens)
        if math.isfinite(wanted):
            ratio = self._over_most("wanted_deviation", wanted)
        elif math.isfinite(output) and not self._compared:
            ratio = self._over_most("output_deviation", output)
        else:
            return None
        steps = self._near.at(self._step, ratio < LEFT)
        steps = math.nan if self._own.made else steps
        return dict(zip((g.name for g in self.gauges), (ratio, steps), strict=True))

    def _over_most(self, signal: str, now: float) -> float:
        self._last[signal].append(now)
        self._most[signal] = max(self._most[signal], median(np.array(self._last[signal])))
        return now / self._most[signal] if self._most[signal] > FEWEST else 1.0

    def measures(self, values: Array) -> Bools:
        """See `blocks`: each record counts."""
        return np.ones(len(values), dtype=bool)


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (CollapseFeature(),)


RULES: tuple[Rule, ...] = (
    Rule(
        name="EmbeddingCollapse",
        title="The embeddings of all samples become one point",
        family="embedding_apart",
        summary="The embeddings of all samples have become one point: they no longer tell samples apart.",
        description="Samples are {embedding_apart_ratio:.2g} as far apart as they were, for "
        "{embedding_collapsed_steps:.0f} steps.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(
                    Condition("embedding_apart_ratio", below=LEFT),
                    Condition("embedding_collapsed_steps", above=63.0),
                ),
            ),
        ),
        abnormal=(Condition("embedding_apart_ratio", below=LEFT),),
        source="a fifth of the largest distance so far, for 64 steps; targets of the data stay as they are",
        remedy=(
            "Stop the gradient of one of the two views (`.detach()`), and keep the predictor.",
            "The average of a teacher follows slowly: `decay * teacher + (1 - decay) * student` with a decay of 0.99 "
            "and more; a teacher is in no optimizer.",
            "Add a term that keeps samples apart: negatives, variance, whitening, or a batch norm at the end.",
        ),
        references=("Chen and He 2020, Exploring Simple Siamese Representation Learning, arXiv:2011.10566",),
        fact=True,
    ),
)
