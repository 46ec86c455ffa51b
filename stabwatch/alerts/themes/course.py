"""The course of the loss as a whole: one that never moves, and one that is lost where the learning rate jumps."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from stabwatch.alerts.blocks import Block
from stabwatch.alerts.features import DerivedSignal, Feature, RunFeature, own_signals
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array, Ints, median

JUMP = 10.0
"""Times the learning rate of the record before: a decay and a return, not a step of a warm-up."""
SETTLED = 16
"""Fewest learning rates before a jump: by then a warm-up has begun."""
FEW = 3
"""Losses whose median counts after the jump."""
AFTER = 32
"""Records after a jump that belong to it."""
BEGIN = 4
"""Records at the beginning in which a loss may come to where it then stays."""
SMALL = 1e-6
"""A loss below it may be zero, where a policy-gradient loss converges."""


class RangeFeature(RunFeature):
    """How far apart the highest and the lowest loss are, over the largest absolute one.

    Of the whole run, and of all but the first four records.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "loss_range_ratio", f"Highest minus lowest loss after the first {BEGIN}, over the largest.", "ratio", "run"
        ),
        DerivedSignal("loss_whole_range_ratio", "The same over all records.", "ratio", "run"),
        DerivedSignal("loss_range_steps", "Steps between the first loss and the last one.", "1", "run"),
    )

    def __init__(self) -> None:
        super().__init__("loss_range", "loss")

    def _begin(self) -> None:
        self._least, self._most = [math.inf, math.inf], [-math.inf, -math.inf]
        self._first = math.nan

    def _observe(self, values: Array) -> dict[str, float] | None:
        loss = self._one("loss", values)
        if not math.isfinite(loss):
            return None
        self._first = self._step if math.isnan(self._first) else self._first
        for i in (0, 1) if self._points >= BEGIN else (1,):
            self._least[i], self._most[i] = min(self._least[i], loss), max(self._most[i], loss)
        size = max(abs(self._least[1]), abs(self._most[1]))
        spreads = [
            (most - least) / size if size > SMALL and most >= least else math.nan
            for least, most in zip(self._least, self._most, strict=True)
        ]
        numbers = (*spreads, self._step - self._first)
        return dict(zip((g.name for g in self.gauges), numbers, strict=True)) | {"loss": loss}

    measures = own_signals

    def observe_block(self, steps: Ints, values: Array) -> Block | None:
        """See `stabwatch.alerts.blocks`."""
        if self._points < BEGIN:
            return None
        loss = self._column("loss", values)
        rows = np.flatnonzero(np.isfinite(loss))
        if not len(rows):
            return self._many(rows, {})
        loss = loss[rows]
        extremes = [
            (np.minimum.accumulate(np.append(least, loss))[1:], np.maximum.accumulate(np.append(most, loss))[1:])
            for least, most in zip(self._least, self._most, strict=True)
        ]
        self._least, self._most = ([float(both[i][-1]) for both in extremes] for i in (0, 1))
        size = np.maximum(*map(np.abs, extremes[1]))
        with np.errstate(all="ignore"):
            spreads = [np.where(size > SMALL, (most - least) / size, np.nan) for least, most in extremes]
        numbers = (*spreads, steps[rows] - self._first)
        return self._many(rows, dict(zip((g.name for g in self.gauges), numbers, strict=True)) | {"loss": loss})


class SameFeature(RunFeature):
    """For how many records the loss has been the very same number, and how suddenly it became that.

    apart: the distance of the loss before, at its least over 16 records, over their range. 0 before the number has come
    twice, and where the loss neared that number, came down to zero (a hinge that is satisfied everywhere), or has few
    values (a coarse number format).
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal("loss_same_records", "Records for which the loss has been the same number.", "1", "run"),
        DerivedSignal(
            "loss_same_apart_ratio", "How far off that number the losses before it were, over their range.", "ratio",
            "run",
        ),
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__("loss_same", "loss")

    def _begin(self) -> None:
        self._before: deque[float] = deque(maxlen=SETTLED)
        self._number, self._same = math.nan, 0

    def _observe(self, values: Array) -> dict[str, float] | None:
        loss = self._one("loss", values)
        if not math.isfinite(loss):
            return None
        if loss == self._number:
            self._same += 1
        else:
            self._before.extend([self._number] * min(self._same, SETTLED) if self._same else [])
            self._number, self._same = loss, 1
        numbers = (float(self._same), self._apart() if self._same > 1 else 0.0)
        return dict(zip((g.name for g in self.gauges), numbers, strict=True)) | {"loss": loss}

    def _apart(self) -> float:
        if len(self._before) < SETTLED:
            return math.nan
        off = np.abs(np.array(self._before) - self._number)
        span = max(self._before) - min(self._before)
        floor = self._number == 0 and min(self._before) > 0
        comes_down = median(off[SETTLED // 2 :]) < median(off[: SETTLED // 2]) / 2
        coarse = len(set(self._before)) < SETTLED / 2
        return 0.0 if floor or comes_down or coarse else float(off.min()) / span

    measures = own_signals


class RateJumpFeature(RunFeature):
    """The share of the progress of the loss, from its first to its best value, that is lost after the rate jumped.

    A jump is a learning rate of ten times that of the record before. The median of the last three losses counts.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "rate_jump_loss_ratio",
            f"Share of the loss's progress that is lost; at most what was {AFTER} records after the rate jumped.",
            "ratio",
            "run",
        ),
        DerivedSignal("rate_jump_factor", "By what factor the learning rate had jumped.", "ratio", "run"),
    )

    def __init__(self) -> None:
        super().__init__("rate_jump", "learning_rate", "loss")

    def _begin(self) -> None:
        self._rate = self._first = self._factor = math.nan
        self._best, self._held = math.inf, 0.0
        self._rates = self._since = 0
        self._last: deque[float] = deque(maxlen=FEW)

    def _observe(self, values: Array) -> dict[str, float] | None:
        rate, loss = (self._one(signal, values) for signal in ("learning_rate", "loss"))
        if not rate > 0 or not math.isfinite(loss):
            return None
        self._first = loss if math.isnan(self._first) else self._first
        if self._rates >= SETTLED and rate > JUMP * self._rate:
            self._factor, self._since, self._held = rate / self._rate, 0, 0.0
            self._last.clear()
        self._since += 1
        self._rate, self._rates = rate, self._rates + 1
        self._last.append(loss)
        numbers = (self._lost(), self._factor)
        return dict(zip((g.name for g in self.gauges), numbers, strict=True)) | {"learning_rate": rate, "loss": loss}

    def _lost(self) -> float:
        if len(self._last) < FEW:
            return math.nan
        now = sorted(self._last)[FEW // 2]
        if math.isnan(self._factor):
            self._best = min(self._best, now)
            return math.nan
        made = self._first - self._best
        lost = min((now - self._best) / made, 1.0) if 0 < made < math.inf else math.nan
        self._held = max(self._held, lost) if self._since <= AFTER else self._held
        return min(lost, self._held)

    measures = own_signals


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (RangeFeature(), SameFeature(), RateJumpFeature())


RULES: tuple[Rule, ...] = (
    Rule(
        name="LossConstant",
        title="The loss does not move",
        family="loss_range",
        summary="The loss has been the same number nearly since the first record: nothing is learned.",
        description="All losses but the first, over {loss_range_steps:.0f} steps, are within {loss_range_ratio:.2%} of "
        "{loss:.6g}.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(
                    Condition("loss_range_ratio", below=2e-3),
                    Condition("loss_whole_range_ratio", below=0.02),
                    Condition("loss_range_steps", above=99.0),
                ),
                for_points=2,
            ),
        ),
        abnormal=(Condition("loss_range_ratio", below=2e-3), Condition("loss_whole_range_ratio", below=0.02)),
        warm_up=12,
        source="two parts in a thousand over 100 steps and 12 records, and two in a hundred with the first four: "
        "batches alone make a loss differ by more",
        remedy=(
            "Is the reference of the loss the trained model itself? A preference loss then stays at ln 2.",
            "Do all embeddings become one point? A triplet loss then stays at its margin: begin with random negatives.",
            "Does the loss depend on the parameters? Look for `.detach()`, `argmax` and saturated outputs.",
        ),
    ),
    Rule(
        name="LossStuck",
        title="The loss has become one and the same number",
        family="loss_same",
        summary="The loss has become one and the same number in every step: since then nothing is learned.",
        description="The loss has been {loss:.6g} for {loss_same_records:.0f} records; those before were far from it.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("loss_same_records", above=15.5), Condition("loss_same_apart_ratio", above=0.02)),
            ),
        ),
        abnormal=(Condition("loss_same_records", above=1.5), Condition("loss_same_apart_ratio", above=0.02)),
        source="batches differ, so sixteen equal losses in a row depend on no parameter; a loss that comes down to "
        "zero has learned all",
        remedy=(
            "In reinforcement learning: are all rewards of a group equal? Then all advantages, and the loss, are zero.",
            "Look for a clamp, a saturated output or `.detach()` that has begun to hold, and for masks that became "
            "empty.",
            "Check that the loader still gives different batches.",
        ),
    ),
    Rule(
        name="LossLostAtRateJump",
        title="The loss is lost where the learning rate jumped",
        family="rate_jump",
        summary="The learning rate jumped, and the loss has lost most of its progress since.",
        description="The learning rate jumped to {rate_jump_factor:.3g} times its value. The loss is {loss:.4g}: "
        "{rate_jump_loss_ratio:.0%} of its progress is lost.",
        thresholds=(Threshold(severity="warning", when=(Condition("rate_jump_loss_ratio", above=0.5),), for_points=2),),
        abnormal=(Condition("rate_jump_loss_ratio", above=0.25),),
        source="half of the progress, in the median of three losses; a warm restart loses less",
        remedy=(
            "Was the run resumed? Load the state of the scheduler, and check the learning rate of the first steps.",
            "If the schedule restarts on purpose, restart at a lower rate or warm up again.",
        ),
    ),
)
