"""Derived signals of the loss: spikes, level shifts, regression, and a rise during warm-up."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stabwatch.alerts.blocks import Block, OnDemand
from stabwatch.alerts.columns import LayerColumns
from stabwatch.alerts.data_change import CHANGED, GAUGES, JUMP_RISE, JUMP_Z, DataChange
from stabwatch.alerts.features import WINDOW, DerivedSignal, ScalarFeature, own_signals
from stabwatch.alerts.fresh_start import BACK, Course
from stabwatch.alerts.loss_progress import Progress
from stabwatch.alerts.loss_return import RETURN, TURN, returned, returned_many
from stabwatch.alerts.objectives import Beside, Objective, ObjectiveColumns
from stabwatch.alerts.rule import Condition
from stabwatch.alerts.statistics import (
    TINY,
    Array,
    Ints,
    exceedances,
    median,
    middle,
    shifted,
)
from stabwatch.alerts.warm_up import WarmUpRise
from stabwatch.runlog import SeriesKey

SHIFTED = 8
"""Length of the recent window that a level shift compares with the 64 values before it."""
LEAST_MADE = 1e-12
"""Progress of a loss that has made none."""
SHIFT = (
    Condition("loss_shift_exceedance_ratio", above=0.95),
    Condition("loss_shift_ratio", above=1.2),
    Condition("loss_shift_rise_ratio", above=0.05),
)
"""The level of the loss has shifted, in losses that scatter so much that none stands out."""
UNSIGNED = 0.7
"""Weight of a regression once the loss was negative: zero is where it may end, so it must be clearly above that."""


class LossFeature(ScalarFeature):
    """The loss: spikes, level shifts, regression and warm-up rise.

    A regression of 0.5 means that half of the progress is lost, or, with little progress, that the loss is 1.5 times
    its best. While the loss is positive, the logarithm of the loss must have regressed as well, which ignores heavy
    tails. A loss that was negative has no floor at zero (a policy-gradient loss returns to zero at convergence): for
    it, a regression of 0.5 requires a loss that is clearly above zero, by four tenths of what it had been below.
    Where losses cannot be compared (see `objectives`), a regression is growth by orders of magnitude.
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
                "Share of the loss's progress from its first to its best value that has regressed. Of a loss that is "
                "not comparable, its growth over its usual size, in shares of eight decades.",
                "ratio",
                "run",
            ),
            DerivedSignal(
                "loss_rise_ratio",
                f"The loss above the median of its last {WINDOW} values, over its progress from its first to its best "
                "value.",
                "ratio",
                "run",
            ),
            DerivedSignal(
                "loss_shift_rise_ratio",
                f"The median of the last {SHIFTED} losses above that of the {WINDOW} before them, over that progress; "
                "above zero for a loss that was negative from the beginning.",
                "ratio",
                "run",
            ),
            DerivedSignal(
                "loss_comparable",
                "Whether losses of different steps can be compared: 0 where a policy, a value or a game is learned.",
                scope="run",
            ),
            *self._SHIFT,
            *RETURN,
            *WarmUpRise.gauges,
            *GAUGES,
        )
        self._batches = LayerColumns("batch_shift_ratio")
        self._resets = LayerColumns("optimizer_resets_total")
        self._course = Course()
        self.fresh_starts: list[int] = []
        """Steps at which training started over: without the optimizer's state, and with the loss of the beginning."""
        self._rates = LayerColumns("learning_rate")
        self._beside = ObjectiveColumns()
        self._rate = math.nan
        self.changes: list[int] = []
        """Steps at which the loss jumped together with the data, which were learned then."""

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Feature."""
        super().bind(keys)
        self._rates.bind(keys)
        self._beside.bind(keys)
        self._batches.bind(keys)
        self._resets.bind(keys)

    @property
    def objective(self) -> Objective:
        """Whether losses of different steps can be compared."""
        return self._objective

    def _observe(self, values: Array) -> dict[str, float] | None:
        self._now = self._beside.beside(values[None])[0]
        rates = self._rates.of("learning_rate", values)
        self._rate = float(rates[0]) if len(rates) else math.nan
        shifts = self._batches.of("batch_shift_ratio", values)
        self._course_goes_on(values)
        level = median(np.array(self._past))
        found = super()._observe(values)
        return (
            None
            if found is None
            else found | self._explained(found, float(shifts[0]) if len(shifts) else math.nan, level)
        )

    def _course_goes_on(self, values: Array) -> None:
        """Where training starts over, the loss is judged from there on."""
        loss, resets = self._one("loss", values), self._resets.of("optimizer_resets_total", values)
        if (resets > 0).any() and self._course.lost(loss) >= BACK:
            self.fresh_starts.append(self._step)
            self._judge_anew([])
        self._course.observe([loss])

    def _explained(self, found: dict[str, float], shift: float, level: float) -> dict[str, float]:
        """Do the data explain the loss? Where they are other ones that are learned, the loss is judged again."""
        jumped = found["loss_robust_z"] > JUMP_Z and found["loss_rise_ratio"] > JUMP_RISE
        shifted = all(bool(one.holds(np.float64(found[one.gauge]))) for one in SHIFT)
        jumped = (jumped or shifted) and found["loss_comparable"] > 0
        odd, learned = self._change.observe(self._step, found["loss"], shift, level, jumped, found["loss_first"])
        held = float(self._change.holds)
        if learned:
            self.changes.append(self._change.since)
            self._judge_anew(learned)
        return dict(zip((gauge.name for gauge in GAUGES), (held, odd), strict=True))

    def _begin(self) -> None:
        super()._begin()
        self._plain = Progress(lambda best: np.abs(best) * np.where(best > 0, 1.0, 2.0))
        self._log: Progress | None = Progress(lambda best: np.float64(2 * math.log(1.5)))
        self._rise = WarmUpRise()
        self._objective = Objective()
        self._long: deque[float] = deque(maxlen=WINDOW + TURN)
        self._change = DataChange()

    def _judge_anew(self, losses: Sequence[float]) -> None:
        objective = self._objective
        self._begin()
        self._objective, self._points = objective, len(losses)
        for loss in losses:
            self._past.append(loss)
            self._long.append(loss)
            self._rise.numbers(loss, self._rate)
            past = np.array(self._past)
            self._plain.regression(past)
            if loss <= 0:
                self._log = None
            if self._log is not None:
                self._log.regression(np.log(past))

    def _numbers(self, x: float) -> dict[str, float]:
        past = np.array([*self._past, x])
        regression, comparable = self._plain.regression(past), self._objective.observe(x, self._now)
        if x <= 0:
            self._log = None
        if self._log is not None:
            regression = min(regression, self._log.regression(np.log(past)))
        else:
            regression *= UNSIGNED
        self._long.append(x)
        long = np.array(self._long)
        before = long[-WINDOW - SHIFTED : -SHIFTED]
        shift = shifted(before, long[-SHIFTED:])
        made = max(self._plain.first - self._plain.best, LEAST_MADE)
        ground = float(self._ground(np.float64(median(before))))
        return (
            super()._numbers(x)
            | {
                gauge.name: n
                for gauge, n in zip((*self._SHIFT, *RETURN), (*shift, *returned(long, self._plain.best)), strict=True)
            }
            | self._rise.numbers(x, self._rate)
            | {
                "loss_regression_ratio": regression if comparable else self._objective.growth(),
                "loss_rise_ratio": (x - median(past[:-1])) / made,
                "loss_shift_rise_ratio": (median(long[-SHIFTED:]) - ground) / made,
                "loss_comparable": float(comparable),
                "loss_first": self._plain.first,
                "loss_best": self._plain.best,
            }
        )

    def _ground(self, level: Array | np.float64) -> Array | np.float64:
        """The level above which a shift counts: a score that comes back to zero has not become worse."""
        return np.maximum(level, 0.0) if self._objective.is_score else level

    measures = own_signals

    def observe_block(self, steps: Ints, values: Array) -> Block | None:
        """See `blocks`."""
        shifts = self._batches.of_run("batch_shift_ratio", values)
        resets = self._resets.of_run("optimizer_resets_total", values)
        if len(self._long) < WINDOW + TURN or self._change.holds or (shifts > CHANGED).any() or (resets > 0).any():
            return None
        self._change.calm(shifts)
        x = self._column("loss", values)
        self._course.observe(x.tolist())
        rates = self._rates.of_run("learning_rate", values)
        rows = np.flatnonzero(np.isfinite(x))
        if not len(rows):
            return self._many(rows, {})
        beside = self._beside.beside(values[rows])
        return self._many(rows, self._all_numbers(x[rows], rates[rows], beside) | {self.name: x[rows]})

    def _all_numbers(self, x: Array, rates: Array, beside: Sequence[Beside]) -> dict[str, Array | OnDemand]:
        """`_numbers` of finite losses in a row, (n,), when all windows are full."""
        past = np.concatenate([np.array(self._long), x])
        regression, best = self._plain.regressions(past, len(x))
        positive = int(np.argmax(x <= 0)) if (x <= 0).any() else len(x)
        if self._log is not None and positive:
            logs, _ = self._log.regressions(np.log(past[: len(past) - len(x) + positive]), positive)
            regression[:positive] = np.minimum(regression[:positive], logs)
        regression[positive if self._log is not None else 0 :] *= UNSIGNED
        comparable = np.ones(len(x))
        for i, (loss, shown) in enumerate(zip(x.tolist(), beside, strict=True)):
            if not self._objective.observe(loss, shown):
                comparable[i], regression[i] = 0.0, self._objective.growth()
        self._log = self._log if positive == len(x) else None
        self._long.extend(x[-WINDOW - TURN :].tolist())
        last = sliding_window_view(past, SHIFTED)[-len(x) :]
        before = sliding_window_view(past[: len(past) - SHIFTED], WINDOW)[-len(x) :]
        centre = middle(np.sort(before, axis=1))
        now = middle(np.sort(last, axis=1))
        ratio = 1 + (now - centre) / np.maximum(np.abs(centre), TINY)
        made = np.maximum(self._plain.first - best, LEAST_MADE)
        level = middle(np.sort(sliding_window_view(past[:-1], WINDOW)[-len(x) :], axis=1))
        share = OnDemand(lambda at, _: exceedances(last[at], before[at]), np.ones((len(x), 1), dtype=bool))
        return {
            **self._numbers_many(x),
            **dict(zip((gauge.name for gauge in self._SHIFT), (share, ratio), strict=True)),
            **returned_many(past, best),
            **self._rise.numbers_many(x, rates),
            "loss_regression_ratio": regression,
            "loss_rise_ratio": (x - level) / made,
            "loss_shift_rise_ratio": (now - self._ground(centre)) / made,
            "loss_comparable": comparable,
            "loss_first": np.full(len(x), self._plain.first),
            "loss_best": best,
            **{gauge.name: np.zeros(len(x)) for gauge in GAUGES},
        }
