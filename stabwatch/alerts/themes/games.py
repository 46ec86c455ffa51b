"""Two models that are trained against each other: has one of them won?"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from stabwatch.alerts.features import DerivedSignal, Duration, Feature, RunFeature
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array, Bools, median

FEW, LAST = 8, 16
"""Losses whose median is the first level, and the level now."""
FAR = 30.0
"""Between the sizes of real and of generated samples: pixels of 0 to 255 are 100 times as large as those of a tanh."""
NOTHING = 0.01
"""Share of its first level below which the loss of a player is nothing."""


class PlayerFeature(RunFeature):
    """The loss of a model that is trained against another one, over its first level, and for how long it is nothing.

    Only where a binary cross-entropy or a cross-entropy is seen: the error of a value may well go to zero.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "player_loss_ratio", f"Median of {LAST} losses of a player over its first level.", "ratio", "run"
        ),
        DerivedSignal("player_won_steps", f"Steps for which player_loss_ratio has been below {NOTHING:g}.", "1", "run"),
    )

    def __init__(self) -> None:
        super().__init__("player_loss", "loss", "opponent_steps", "binary_probability_ratio", "target_rms")

    def _begin(self) -> None:
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=LAST)
        self._won = Duration()
        self._opposed: deque[bool] = deque(maxlen=LAST)
        self._judges = False

    def _observe(self, values: Array) -> dict[str, float] | None:
        loss, opposed, judges, errs = (self._one(signal, values) for signal in self._columns.signals)
        if not math.isnan(judges):
            self._judges = math.isnan(errs)
        self._opposed.append(opposed > 0)
        if not math.isfinite(loss):
            return None
        self._last.append(abs(loss))
        self._first = self._first if len(self._first) == FEW else [*self._first, abs(loss)]
        level = median(np.array(self._first))
        plays = self._judges and sum(self._opposed) > LAST / 2
        if len(self._last) < LAST or not level > 0 or not plays:
            return None
        share = median(np.array(self._last)) / level
        steps = self._won.at(self._step, share < NOTHING)
        return dict(zip((g.name for g in self.gauges), (share, steps), strict=True)) | {
            "loss": abs(loss),
            "first": level,
        }

    def measures(self, values: Array) -> Bools:
        """See `blocks`: each record counts."""
        return np.ones(len(values), dtype=bool)


class PlayerInputFeature(RunFeature):
    """How far apart the samples are in size that a model is given which is trained against another one."""

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "player_input_ratio",
            f"Median of the last {LAST} of input_span_ratio, of a model that is trained against another one.",
            "ratio",
            "run",
        ),
        DerivedSignal("player_input_steps", f"Steps for which player_input_ratio has been above {FAR:g}.", "1", "run"),
    )

    def __init__(self) -> None:
        super().__init__("player_input", "input_span_ratio", "opponent_steps")

    def _begin(self) -> None:
        self._last: deque[float] = deque(maxlen=LAST)
        self._opposed: deque[bool] = deque(maxlen=LAST)
        self._far = Duration()

    def _observe(self, values: Array) -> dict[str, float] | None:
        span, opposed = (self._one(signal, values) for signal in self._columns.signals)
        if not math.isfinite(span):
            return None
        self._last.append(span)
        self._opposed.append(opposed > 0)
        if len(self._last) < FEW or sum(self._opposed) <= len(self._opposed) / 2:
            return None
        ratio = median(np.array(self._last))
        return {"player_input_ratio": ratio, "player_input_steps": self._far.at(self._step, ratio > FAR)}

    def measures(self, values: Array) -> Bools:
        """See `blocks`: only records with the sizes of inputs count."""
        return np.isfinite(self._column(self.signal, values))


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (PlayerFeature(), PlayerInputFeature())


RULES: tuple[Rule, ...] = (
    Rule(
        name="DiscriminatorCollapse",
        title="The discriminator has won",
        family="player_loss",
        summary="Two models are trained against each other, and one of them has won: the loss of this one is next to "
        "nothing, and nothing is learned from it any more.",
        description="The size of the loss is {loss:.3g}, {player_loss_ratio:.2%} of its first level ({first:.3g}), as "
        "for {player_won_steps:.0f} steps.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("player_loss_ratio", below=NOTHING), Condition("player_won_steps", above=63.0)),
                for_points=2,
            ),
        ),
        abnormal=(Condition("player_loss_ratio", below=NOTHING),),
        warm_up=24,
        source="a hundredth of the first level for 64 steps: in a game that goes on, both losses stay of the same size",
        remedy=(
            "Go back to a checkpoint in which both losses were of the same size.",
            "Lower the discriminator's learning rate, or train it less often.",
            "Use a gradient penalty, noise on its inputs, or label smoothing.",
        ),
        references=("Arjovsky and Bottou 2017, Towards Principled Methods for Training GANs, arXiv:1701.04862",),
    ),
    Rule(
        name="SamplesOnOtherScale",
        title="Real and generated samples are on different scales",
        family="player_input",
        summary="Of two models that are trained against each other one is given samples of very different size: a look "
        "at one number tells which are real.",
        description="The largest samples that the model is given are {player_input_ratio:.3g} times as large as the "
        "smallest, as for {player_input_steps:.0f} steps.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("player_input_ratio", above=FAR), Condition("player_input_steps", above=63.0)),
                for_points=2,
            ),
        ),
        abnormal=(Condition("player_input_ratio", above=FAR),),
        source="thirty times for 64 steps, one of them above 10: scaled data are about 1, and generators begin with a "
        "tenth of it",
        remedy=(
            "Scale the real samples to the range of the generator's last function: pixels to -1 to 1 for a tanh, to 0 "
            "to 1 for a sigmoid.",
            "Give both players the same numbers: is the normalisation applied to one of them alone?",
        ),
        references=("Radford et al. 2015, DCGAN, arXiv:1511.06434",),
        fact=True,
    ),
)
