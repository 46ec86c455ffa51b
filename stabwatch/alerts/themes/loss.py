"""Loss spikes, level shifts, divergence, and a loss that rises during warm-up."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stabwatch.alerts.blocks import Block, OnDemand
from stabwatch.alerts.columns import LayerColumns
from stabwatch.alerts.features import WINDOW, DerivedSignal, Feature, ScalarFeature, own_signals
from stabwatch.alerts.references import PALM, PROXIES
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import (
    TINY,
    Array,
    Ints,
    exceedances,
    exceeds,
    median,
    middle,
    robust_spread,
    row_spreads,
    shifted,
)
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

    def __init__(self, floor: Callable[[Array | np.float64], Array | np.float64]) -> None:
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
        least = float(self._floor(np.float64(self.best)))
        return (now - self.best) / max(self.first - self.best, NOISE * self._noise, least, 1e-12)

    def regressions(self, past: Array, n: int) -> tuple[Array, Array]:
        """The share and the best at each of the last n values, (n,). At least 64 values come before those."""
        now = middle(np.sort(sliding_window_view(past[-n - SMOOTH + 1 :], SMOOTH), axis=1))
        best = np.minimum.accumulate(np.append(self.best, now))
        better = np.flatnonzero(best[1:] < best[:-1])
        steps = sliding_window_view(np.diff(past[-n - WINDOW :]), WINDOW)
        noise = np.append(self._noise, row_spreads(steps[better]) / math.sqrt(2))
        noise = noise[np.searchsorted(better, np.arange(n), side="right")]
        self.best, self._noise, best = float(best[-1]), float(noise[-1]), best[1:]
        made = np.maximum(np.maximum(self.first - best, NOISE * noise), np.maximum(self._floor(best), 1e-12))
        return (now - best) / made, best


UNSIGNED = 0.7
"""Weight of a regression once the loss was negative: zero is where it may end, so it must be clearly above that."""


class LossFeature(ScalarFeature):
    """The loss: spikes, level shifts, regression and warm-up rise.

    A regression of 0.5 means that half of the progress is lost, or, with little progress, that the loss is 1.5 times
    its best. While the loss is positive, the logarithm of the loss must have regressed as well, which ignores heavy
    tails. A loss that was negative has no floor at zero (a policy-gradient loss returns to zero at convergence): for
    it, a regression of 0.5 requires a loss that is clearly above zero, by four tenths of what it had been below.
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
        self._plain = Progress(lambda best: np.abs(best) * np.where(best > 0, 1.0, 2.0))
        self._log: Progress | None = Progress(lambda best: np.float64(2 * math.log(1.5)))
        self._rise = WarmUpRise()
        self._long: deque[float] = deque(maxlen=WINDOW + SHIFTED)

    def _numbers(self, x: float) -> dict[str, float]:
        past = np.array([*self._past, x])
        regression = self._plain.regression(past)
        if x <= 0:
            self._log = None
        if self._log is not None:
            regression = min(regression, self._log.regression(np.log(past)))
        else:
            regression *= UNSIGNED
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

    measures = own_signals

    def observe_block(self, steps: Ints, values: Array) -> Block | None:
        """See `blocks`."""
        if len(self._long) < WINDOW + SHIFTED:
            return None
        x = self._column("loss", values)
        rates = self._rates.of("learning_rate", values)
        rates = rates[:, 0] if rates.shape[1] else np.full(len(x), np.nan)
        rows = np.flatnonzero(np.isfinite(x))
        if not len(rows):
            return self._many(rows, {})
        return self._many(rows, self._all_numbers(x[rows], rates[rows]) | {self.name: x[rows]})

    def _all_numbers(self, x: Array, rates: Array) -> dict[str, Array | OnDemand]:
        """`_numbers` of finite losses in a row, (n,), when all windows are full."""
        past = np.concatenate([np.array(self._long), x])
        regression, best = self._plain.regressions(past, len(x))
        positive = int(np.argmax(x <= 0)) if (x <= 0).any() else len(x)
        if self._log is not None and positive:
            logs, _ = self._log.regressions(np.log(past[: len(past) - len(x) + positive]), positive)
            regression[:positive] = np.minimum(regression[:positive], logs)
        regression[positive if self._log is not None else 0 :] *= UNSIGNED
        self._log = self._log if positive == len(x) else None
        self._long.extend(x[-WINDOW - SHIFTED :].tolist())
        before, last = sliding_window_view(past, WINDOW)[1 : len(x) + 1], sliding_window_view(past, SHIFTED)[-len(x) :]
        centre = middle(np.sort(before, axis=1))
        ratio = 1 + (middle(np.sort(last, axis=1)) - centre) / np.maximum(np.abs(centre), TINY)
        share = OnDemand(lambda at, _: exceedances(last[at], before[at]), np.ones((len(x), 1), dtype=bool))
        return {
            **self._numbers_many(x),
            **dict(zip((gauge.name for gauge in self._SHIFT), (share, ratio), strict=True)),
            **self._rise.numbers_many(x, rates),
            "loss_regression_ratio": regression,
            "loss_first": np.full(len(x), self._plain.first),
            "loss_best": best,
        }


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

    def numbers_many(self, losses: Array, rates: Array) -> dict[str, Array]:
        """The same after each of several points, (n,), when there are 32 already."""
        past = np.concatenate([np.array(self._last), losses])
        windows = np.ascontiguousarray(sliding_window_view(past, BEST_WINDOW)[1:])
        largest = np.fmax.accumulate(np.append(self._largest, rates))[1:]
        means = windows.mean(axis=1)
        least = np.minimum.accumulate(np.append(self._best_mean, means))
        better = np.flatnonzero(means <= least[:-1])
        exceedance = np.full(len(losses), 0.5)  # of a window with itself
        until = np.append(self._until_best, largest[better])[np.searchsorted(better, np.arange(len(losses)), "right")]
        best = self._best
        for start, stop in pairwise([-1, *better.tolist(), len(losses)]):
            best = windows[start] if start >= 0 else best
            exceedance[start + 1 : stop] = _with_one(past[start + 2 : stop + BEST_WINDOW], best)
        self._best, self._best_mean, self._until_best = best.copy(), float(least[-1]), float(until[-1])
        self._last.extend(losses[-BEST_WINDOW:].tolist())
        self._largest = float(largest[-1])
        with np.errstate(invalid="ignore", divide="ignore"):
            rises = np.where(until > 0, rates / until, np.nan)
        doublings = np.array([math.log2(rise) if rise > 0 else math.nan for rise in rises.tolist()])
        numbers = (exceedance, rises, (2 * exceedance - 1) * doublings)
        return {gauge.name: n for gauge, n in zip(self.gauges, numbers, strict=True)}


def _with_one(values: Array, other: Array) -> Array:
    """`exceeds` of each window of values, as long as the other one, with that one."""
    ordered = np.sort(other)
    below = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    twice = np.cumsum(np.append(0, below))
    return np.asarray((twice[len(other) :] - twice[: -len(other)]) / 2 / len(other) ** 2)


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
