"""The loss against its own past: spikes, shifts, divergence, and a rise with the learning rate."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from stabwatch.alerts.features import WINDOW, DerivedSignal, Feature, LayerColumns, ScalarFeature
from stabwatch.alerts.references import PALM, PROXIES
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array, exceeds, median, robust_spread, shifted
from stabwatch.runlog import SeriesKey

SHIFTED = 8
"""Values whose median is a level."""
SMOOTH = 16
"""Points of the median that stands for the level of the loss."""
NOISE = 6.0
"""Progress below six times the noise is none: over 1e5 points the 16-point median of noise spans some 2.5 of them."""


class Progress:
    """How much of a loss's progress is lost again: (m - best) / max(first - best, 6 noise, floor).

    m: median of the last 16 points. first: the first such median. best: the least so far. noise: robust spread of the
    differences of neighbours (so a trend does not count) over the 64 points before the best.
    """

    def __init__(self, floor: Callable[[float], float]) -> None:
        self._floor = floor
        self.first = self._noise = math.nan
        self.best = math.inf

    def lost(self, past: Array) -> float:
        """The share, from the values so far, the newest last; NaN below 16."""
        if len(past) < SMOOTH:
            return math.nan
        now = median(past[-SMOOTH:])
        if math.isnan(self.first):
            self.first = now
        if now < self.best:
            self.best, self._noise = now, robust_spread(np.diff(past)) / math.sqrt(2)
        return (now - self.best) / max(self.first - self.best, NOISE * self._noise, self._floor(self.best), 1e-12)


class LossFeature(ScalarFeature):
    """The loss, and how much of its progress is lost again.

    0.5 means that half of what was learned is gone, or, where little was learned, that the loss is one and a half
    times its best. While the loss is positive it must be so of its logarithm too: heavy tails reach far up, but not
    on that scale. For a loss that has been negative, zero is no floor and its size tells nothing (a policy gradient's
    comes back to zero when all is learned): half is gone, at the least, when it is positive again.
    """

    _SHIFT = (
        DerivedSignal(
            "loss_shift_exceedance_ratio",
            f"Share of pairs in which one of the last {SHIFTED} losses exceeds one of the {WINDOW} before them.",
            "ratio",
            "run",
        ),
        DerivedSignal(
            "loss_shift_ratio",
            f"Median of the last {SHIFTED} values of loss over that of the {WINDOW} before them.",
            "ratio",
            "run",
        ),
    )

    def __init__(self) -> None:
        super().__init__("loss", "loss")
        self.gauges = (
            *self.gauges,
            DerivedSignal(
                "loss_regression_ratio", "Share of the progress of the loss that has been lost again.", "ratio", "run"
            ),
            *self._SHIFT,
            *Climb.gauges,
        )
        self._rates = LayerColumns("learning_rate")
        self._rate = math.nan

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Family."""
        super().bind(keys)
        self._rates.bind(keys)

    def _observe(self, values: Array) -> dict[str, float] | None:
        rates = self._rates.of("learning_rate", values)
        self._rate = float(rates[0]) if len(rates) else math.nan
        return super()._observe(values)

    def _begin(self) -> None:
        super()._begin()
        self._plain = Progress(lambda best: abs(best) if best > 0 else 2 * abs(best))
        self._log: Progress | None = Progress(lambda best: 2 * math.log(1.5))
        self._climb = Climb()
        self._long: deque[float] = deque(maxlen=WINDOW + SHIFTED)

    def _numbers(self, x: float) -> dict[str, float]:
        past = np.array([*self._past, x])
        lost = self._plain.lost(past)
        if x <= 0:
            self._log = None
        if self._log is not None:
            lost = min(lost, self._log.lost(np.log(past)))
        self._long.append(x)
        long = np.array(self._long)
        shift = shifted(long[:-SHIFTED], long[-SHIFTED:])
        return (
            super()._numbers(x)
            | {gauge.name: n for gauge, n in zip(self._SHIFT, shift, strict=True)}
            | self._climb.numbers(x, self._rate)
            | {
                "loss_regression_ratio": lost,
                "loss_first": self._plain.first,
                "loss_best": self._plain.best,
            }
        )


STRETCH = 32


class Climb:
    """The last 32 losses against the 32 that were best, and the learning rate now against what it was until then.

    worse share: of all pairs of one of the last and one of the best, those in which the last is higher; see `exceeds`.
    climb: the learning rate over its largest value up to the end of the best stretch; above 1 only while it is higher
    than it ever was when the loss was best.
    score: (2 worse share - 1) log2(climb), a rank correlation times doublings. A loss that has become much worse counts
    while the rate has hardly climbed, and one that has become somewhat worse while the rate has doubled.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "loss_best_exceedance_ratio",
            f"Share of pairs in which one of the last {STRETCH} losses exceeds one of the best {STRETCH}.",
            "ratio",
            "run",
        ),
        DerivedSignal(
            "learning_rate_rise_ratio", "learning_rate over its largest value until the loss was best.", "ratio", "run"
        ),
        DerivedSignal(
            "warm_up_loss_rise_score",
            "Rank correlation of the last losses with being worse than the best, times the "
            "doublings of the learning rate since those.",
            scope="run",
        ),
    )

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=STRETCH)
        self._best: Array = np.empty(0)
        self._level = math.inf
        self._largest = self._until_best = math.nan

    def numbers(self, loss: float, rate: float) -> dict[str, float]:
        """The gauges after one more point; NaN before there are two stretches' worth of what they compare."""
        self._last.append(loss)
        self._largest = float(np.fmax(self._largest, rate))
        share = climb = score = math.nan
        if len(self._last) == STRETCH:
            now = np.array(self._last)
            level = float(now.mean())  # not the median: half of a best stretch could be bad
            if level <= self._level:
                self._level, self._best, self._until_best = level, now, self._largest
            share = exceeds(now, self._best)
            climb = rate / self._until_best if self._until_best > 0 else math.nan
            score = (2 * share - 1) * math.log2(climb) if climb > 0 else math.nan
        return {gauge.name: n for gauge, n in zip(self.gauges, (share, climb, score), strict=True)}


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (LossFeature(),)


RULES: tuple[Rule, ...] = (
    Rule(
        name="LossSpike",
        title="A loss spike with no earlier sign",
        family="loss",
        summary="The loss spikes.",
        description="The loss is {loss:.4g}: {loss_to_median_ratio:.3g} times its recent median, "
        "{loss_robust_z:.3g} times its usual scatter.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("loss_robust_z", above=5.0), Condition("loss_to_median_ratio", above=1.3)),
                for_points=3,
            ),
        ),
        abnormal=(Condition("loss_robust_z", above=4.0),),
        warm_up=24,
        source="robust form of SpikeScore's 6 sigma (OLMo), held over three points as KillLossSpike does over five",
        remedy=(
            "If it recovers within some hundred steps, go on; if spikes come back, lower the learning rate.",
            "If it does not: go back to a checkpoint before the onset and skip the batches of these steps.",
        ),
        references=(PALM,),
    ),
    Rule(
        name="LossShift",
        title="The loss stays on a higher level",
        family="loss",
        summary="The loss has jumped to a higher level.",
        description="The last losses are {loss_shift_ratio:.3g} times those before: in {loss_shift_exceedance_ratio:.0%} of "
        "all pairs the later one is higher.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("loss_shift_exceedance_ratio", above=0.95), Condition("loss_shift_ratio", above=1.2)),
                for_points=3,
            ),
        ),
        abnormal=(Condition("loss_shift_exceedance_ratio", above=0.75), Condition("loss_shift_ratio", above=1.1)),
        warm_up=40,
        source="nearly each of eight losses is above nearly all of the 64 before, three times in a row: no healthy run "
        "of half A has 0.9 once, beside a median a tenth higher (docs/detection.md)",
        remedy=(
            "Look at the batches since the onset, and at what changed there: data, learning rate, a loss's weight.",
            "Was a change of data or loss meant? Announce it (`watch.announce`), and this stays silent.",
        ),
        references=(PALM,),
    ),
    Rule(
        name="LossRisesWithRate",
        title="The loss gets worse as the learning rate climbs",
        family="loss",
        summary="The loss gets worse while the learning rate climbs.",
        description="{loss_best_exceedance_ratio:.0%} of the last losses exceed those of the best stretch, and the learning "
        "rate is {learning_rate_rise_ratio:.3g} times what it ever was until then.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(
                    Condition("warm_up_loss_rise_score", above=0.2),
                    Condition("learning_rate_rise_ratio", above=1.25),
                    Condition("loss_best_exceedance_ratio", above=0.6),
                    Condition("loss_regression_ratio", above=0.1),
                ),
                for_points=8,
            ),
        ),
        abnormal=(Condition("loss_best_exceedance_ratio", above=0.6), Condition("warm_up_loss_rise_score", above=0.0)),
        warm_up=64,
        source="a score of 0.2 is a share of 0.8 (a shift by 1.2 standard deviations) where the rate is 1.26 times as "
        "high, or 0.6 where it has doubled; and a tenth of the progress lost (docs/detection.md)",
        remedy=(
            "End the warm-up here: go back to where the loss was best, and keep to the learning rate it had there.",
            "Warming up again on a checkpoint of a finished run? Then some rise is usual; watch that it ends.",
        ),
        references=(PROXIES,),
    ),
    Rule(
        name="LossDivergence",
        title="Loss divergence",
        family="loss",
        summary="The loss has diverged.",
        description="The loss is {loss:.4g}; at its best it was {loss_best:.4g}, at first {loss_first:.4g}.",
        thresholds=(
            Threshold(severity="critical", when=(Condition("loss_regression_ratio", above=0.5),), for_points=24),
        ),
        abnormal=(Condition("loss_regression_ratio", above=0.25),),
        warm_up=40,
        source="half of the progress lost, or half again its best, in the median of 16 points, for longer than a spike "
        "stays in that median",
        remedy=(
            "Stop. Resume from a checkpoint before the onset with a lower learning rate, or past the bad batches.",
        ),
        references=(PROXIES,),
    ),
)
