"""Loss spikes, level shifts, divergence, and a loss that rises during warm-up."""

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
"""Length of the recent window that a level shift compares with the 64 values before it."""
SMOOTH = 16
"""Points of the median that smooths the loss."""
NOISE = 6.0
"""Progress below six times the noise does not count: over 1e5 points, the 16-point median of noise spans 2.5 times."""


class Progress:
    """The share of a loss's progress that has regressed: (m - best) / max(first - best, 6 noise, floor).

    m: median of the last 16 points. first: the first such median. best: the smallest so far. noise: robust spread of
    the differences between neighbours, so that a trend does not count, over the 64 points before the best.
    """

    def __init__(self, floor: Callable[[float], float]) -> None:
        self._floor = floor
        self.first = self._noise = math.nan
        self.best = math.inf

    def regression(self, past: Array) -> float:
        """The share from the values so far, the newest last; NaN for fewer than 16."""
        if len(past) < SMOOTH:
            return math.nan
        now = median(past[-SMOOTH:])
        if math.isnan(self.first):
            self.first = now
        if now < self.best:
            self.best, self._noise = now, robust_spread(np.diff(past)) / math.sqrt(2)
        return (now - self.best) / max(self.first - self.best, NOISE * self._noise, self._floor(self.best), 1e-12)


class LossFeature(ScalarFeature):
    """The loss: spikes, level shifts, regression and warm-up rise.

    A regression of 0.5 means that half of the progress is lost, or, with little progress, that the loss is 1.5 times
    its best. While the loss is positive, the logarithm of the loss must have regressed as well, which ignores heavy
    tails. A loss that was negative has no floor at zero (a policy-gradient loss returns to zero at convergence): for
    it, a regression of 0.5 requires a positive loss.
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
                "loss_regression_ratio",
                "Share of the loss's progress from its first to its best value that has regressed.",
                "ratio",
                "run",
            ),
            *self._SHIFT,
            *WarmUpRise.gauges,
        )
        self._rates = LayerColumns("learning_rate")
        self._rate = math.nan

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Feature."""
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
        self._rise = WarmUpRise()
        self._long: deque[float] = deque(maxlen=WINDOW + SHIFTED)

    def _numbers(self, x: float) -> dict[str, float]:
        past = np.array([*self._past, x])
        regression = self._plain.regression(past)
        if x <= 0:
            self._log = None
        if self._log is not None:
            regression = min(regression, self._log.regression(np.log(past)))
        self._long.append(x)
        long = np.array(self._long)
        shift = shifted(long[:-SHIFTED], long[-SHIFTED:])
        return (
            super()._numbers(x)
            | {gauge.name: n for gauge, n in zip(self._SHIFT, shift, strict=True)}
            | self._rise.numbers(x, self._rate)
            | {
                "loss_regression_ratio": regression,
                "loss_first": self._plain.first,
                "loss_best": self._plain.best,
            }
        )


BEST_WINDOW = 32


class WarmUpRise:
    """The last 32 losses against the best 32 consecutive ones, and the rise of the learning rate since those.

    exceedance: share of pairs in which one of the last losses exceeds one of the best; see `exceeds`.
    rise: the learning rate over its largest value up to the end of the best window.
    score: (2 exceedance - 1) log2(rise), a rank correlation times doublings of the rate. A much worse loss counts
        after a small rise, and a slightly worse loss after the rate has doubled.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "loss_best_exceedance_ratio",
            f"Share of pairs in which one of the last {BEST_WINDOW} losses exceeds one of the best {BEST_WINDOW} "
            "in a row.",
            "ratio",
            "run",
        ),
        DerivedSignal(
            "learning_rate_rise_ratio", "learning_rate over its largest value until the loss was best.", "ratio", "run"
        ),
        DerivedSignal(
            "warm_up_loss_rise_score",
            "Rank correlation of being late with being worse than the best losses, times the doublings of the "
            "learning rate since those.",
            scope="run",
        ),
    )

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=BEST_WINDOW)
        self._best: Array = np.empty(0)
        self._best_mean = math.inf
        self._largest = self._until_best = math.nan

    def numbers(self, loss: float, rate: float) -> dict[str, float]:
        """The gauges after one more point; NaN for fewer than 32 points."""
        self._last.append(loss)
        self._largest = float(np.fmax(self._largest, rate))
        exceedance = rise = score = math.nan
        if len(self._last) == BEST_WINDOW:
            now = np.array(self._last)
            mean = float(now.mean())  # not the median, which half of the window could exceed
            if mean <= self._best_mean:
                self._best_mean, self._best, self._until_best = mean, now, self._largest
            exceedance = exceeds(now, self._best)
            rise = rate / self._until_best if self._until_best > 0 else math.nan
            score = (2 * exceedance - 1) * math.log2(rise) if rise > 0 else math.nan
        return {gauge.name: n for gauge, n in zip(self.gauges, (exceedance, rise, score), strict=True)}


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (LossFeature(),)


RULES: tuple[Rule, ...] = (
    Rule(
        name="LossSpike",
        title="Loss spike",
        family="loss",
        summary="The loss has spiked.",
        description="The loss is {loss:.4g}: {loss_to_median_ratio:.3g} times its recent median, "
        "at a robust z-score of {loss_robust_z:.3g}.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("loss_robust_z", above=5.0), Condition("loss_to_median_ratio", above=1.3)),
                for_points=3,
            ),
        ),
        abnormal=(Condition("loss_robust_z", above=4.0),),
        warm_up=24,
        source="a robust form of the 6 sigma of OLMo's SpikeScore, at three points in a row (KillLossSpike: five)",
        remedy=(
            "If the loss recovers within a few hundred steps, continue. If spikes return, lower the learning rate.",
            "If it does not recover, resume from a checkpoint before the onset and skip the batches of these steps.",
        ),
        references=(PALM,),
    ),
    Rule(
        name="LossShift",
        title="Loss level shift",
        family="loss",
        summary="The loss has jumped to a higher level and stays there.",
        description="The median of the last 8 losses is {loss_shift_ratio:.3g} times that of the 64 before. In "
        "{loss_shift_exceedance_ratio:.0%} of all pairs the later loss is higher.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("loss_shift_exceedance_ratio", above=0.95), Condition("loss_shift_ratio", above=1.2)),
                for_points=3,
            ),
        ),
        abnormal=(Condition("loss_shift_exceedance_ratio", above=0.75), Condition("loss_shift_ratio", above=1.1)),
        warm_up=40,
        source="nearly each of eight losses exceeds nearly all of the 64 before, at three points in a row; no "
        "healthy run "
        "of half A reaches 0.9 with a median a tenth higher (docs/detection.md)",
        remedy=(
            "Check the batches since the onset, and what changed there: data, learning rate, a loss weight.",
            "If the change was intended, announce it with `watch.announce`; then this alert does not fire.",
        ),
        references=(PALM,),
    ),
    Rule(
        name="LossRisesWithRate",
        title="Loss rise during warm-up",
        family="loss",
        summary="The loss rises while the learning rate rises.",
        description="The last losses exceed the best ones in {loss_best_exceedance_ratio:.0%} of all pairs. The "
        "learning "
        "rate is {learning_rate_rise_ratio:.3g} times its largest value until then.",
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
        source="a score of 0.2 is an exceedance of 0.8 (a shift of 1.2 standard deviations) at 1.26 times the rate, "
        "or of 0.6 at twice the rate; in addition a tenth of the progress is lost (docs/detection.md)",
        remedy=(
            "End the warm-up here: return to where the loss was best, and keep the learning rate of that step.",
            "When a finished run is warmed up again, some rise is usual; check that it ends.",
        ),
        references=(PROXIES,),
    ),
    Rule(
        name="LossDivergence",
        title="Loss divergence",
        family="loss",
        summary="The loss has diverged.",
        description="The loss is {loss:.4g}. Its best value was {loss_best:.4g}, its first {loss_first:.4g}.",
        thresholds=(
            Threshold(severity="critical", when=(Condition("loss_regression_ratio", above=0.5),), for_points=24),
        ),
        abnormal=(Condition("loss_regression_ratio", above=0.25),),
        warm_up=40,
        source="half of the progress is lost, or the loss is 1.5 times its best, in the median of 16 points, for "
        "longer "
        "than a spike stays in that median",
        remedy=(
            "Stop. Resume from a checkpoint before the onset, with a lower learning rate or without the bad batches.",
        ),
        references=(PROXIES,),
    ),
)
