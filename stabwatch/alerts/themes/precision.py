"""Derived signals and rules of low precision: the gradient scaler, underflow, and zero gradients."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from stabwatch.alerts.blocks import Block
from stabwatch.alerts.columns import LayerColumns
from stabwatch.alerts.features import DerivedSignal, Duration, Feature, RunFeature, own_signals
from stabwatch.alerts.references import CALIBRATED, MIXED, OPT, RELU
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array, Bools, Ints, median
from stabwatch.runlog import SeriesKey

WINDOW = 32
JUST = 1e-3
"""Relative difference that rounding leaves between equal numbers."""
SMALL = 2.0**-11
"""Eight times the smallest normal number of float16."""


class HistoryFeature(RunFeature):
    """A derived signal that is a function of the last 32 values and the peak of one run-scope signal."""

    def __init__(self, signal: str, gauge: DerivedSignal, number: Callable[[deque[float], float], float]) -> None:
        self.gauges = (gauge,)
        self._number = number
        super().__init__(signal, signal)

    def _begin(self) -> None:
        self._past: deque[float] = deque(maxlen=WINDOW)
        self._peak = -math.inf

    def _observe(self, values: Array) -> dict[str, float] | None:
        now = self._one(self.signal, values)
        if not math.isfinite(now):
            return None
        self._past.append(now)
        self._peak = max(self._peak, now)
        return {self.gauges[0].name: self._number(self._past, self._peak), self.signal: now}

    measures = own_signals

    def observe_block(self, steps: Ints, values: Array) -> Block:
        """See `blocks`."""
        now = self._column(self.signal, values)
        rows = np.flatnonzero(np.isfinite(now))
        numbers = []
        for value in now[rows].tolist():
            self._past.append(value)
            self._peak = max(self._peak, value)
            numbers.append(self._number(self._past, self._peak))
        return self._many(rows, {self.gauges[0].name: np.array(numbers), self.signal: now[rows]})


class ZeroFeature(RunFeature):
    """Gradients that are exactly zero or subnormal in float16. Each layer counts with its last measured value.

    Norms are measured more often. Where those of all layers are 0 and the loss is not, all gradients are zero.

    underflow: median over layers of the share of nonzero gradients that are subnormal in float16. It is 0 when rounding
        to float16 would lose gradients in more than a quarter of the layers: then they were not computed in float16,
        where those would be zero already. It is also 0 when the largest gradient of the median layer is not small.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "gradient_zero_median_ratio",
            "Median over layers of gradient_zero_ratio; 1 while all gradient norms are 0 and the loss is not.",
            "ratio",
            "run",
        ),
        DerivedSignal(
            "gradient_zero_rise",
            "gradient_zero_median_ratio minus the median of the layers' first values.",
            scope="run",
        ),
        DerivedSignal(
            "gradient_underflow_ratio",
            "Share of gradients that are subnormal in float16 (median layer); 0 if they were not computed in float16.",
            "ratio",
            "run",
        ),
        DerivedSignal(
            "gradient_never_ratio",
            "Share of the layers whose gradients have been exactly zero at every point so far.",
            "ratio",
            "run",
        ),
        DerivedSignal(
            "gradient_norms_zero_steps",
            "Steps for which the gradient norms of all layers have been 0, after others were not, and the loss is not.",
            "1",
            "run",
        ),
    )

    def __init__(self) -> None:
        self._last, self._first = np.empty((4, 0)), np.empty(0)
        self._moved = np.empty(0, dtype=bool)
        super().__init__(
            "gradient_zero", "gradient_zero_ratio", "gradient_fp16_subnormal_ratio", "gradient_fp16_lost_ratio",
            "gradient_abs_max",
        )  # fmt: skip
        self._norms, self._loss = LayerColumns("layer_gradient_norm"), LayerColumns("loss")
        self._bad = LayerColumns("gradient_nonfinite_total")

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Feature."""
        super().bind(keys)
        for columns in (self._norms, self._loss, self._bad):
            columns.bind(keys)
        more = len(self._columns.layers) - len(self._first)
        self._last = np.pad(self._last, ((0, 0), (0, more)), constant_values=np.nan)
        self._first = np.append(self._first, np.full(more, np.nan))
        others = len(self._norms.layers) - len(self._moved)
        self._moved = np.append(self._moved, np.zeros(others, dtype=bool))

    def _begin(self) -> None:
        self._last[:], self._first[:] = np.nan, np.nan
        self._moved[:] = False
        self._gone = Duration()
        self._gone_steps = 0.0

    def _observe(self, values: Array) -> dict[str, float] | None:
        now = np.array([self._columns.of(signal, values) for signal in self._columns.signals])
        norms = self._norms.of("layer_gradient_norm", values)
        if (self._bad.of("gradient_nonfinite_total", values) > 0).any():
            norms = np.where(norms > 0, norms, np.nan)  # what is not finite does not count, and is not zero
        self._moved = np.where(norms > 0, True, self._moved)
        seen = np.isfinite(norms)
        never = float((~self._moved[seen]).mean()) if seen.any() else 0.0
        if seen.any():
            left = self._loss.number("loss", values) != 0
            gone = left and not norms[seen].any() and bool(self._moved[seen].any())
            self._gone_steps = self._gone.at(self._step, gone)
            now[0] = np.where(gone & np.isfinite(self._first), 1.0, now[0])  # a norm of 0 says so of all gradients
        if np.isnan(now[0]).all():
            nothing = never > 0.5
            numbers = (1.0, 0.0, 0.0, never, 0.0)
            return {gauge.name: n for gauge, n in zip(self.gauges, numbers, strict=True)} if nothing else None
        self._last = np.where(np.isnan(now), self._last, now)
        zero, subnormal, lost, largest = self._last
        self._first = np.where(np.isnan(self._first), zero, self._first)
        computed_in_half = (lost > 0).sum() <= 0.25 * np.isfinite(lost).sum()
        small = median(largest[np.isfinite(largest)]) < SMALL
        underflow = median(subnormal[np.isfinite(subnormal)]) if computed_in_half and small else 0.0
        value = median(zero[np.isfinite(zero)])
        rise = value - median(self._first[np.isfinite(self._first)])
        numbers = (value, rise, underflow, never, self._gone_steps)
        return {gauge.name: n for gauge, n in zip(self.gauges, numbers, strict=True)}

    def measures(self, values: Array) -> Bools:
        """See `blocks`."""
        return self._columns.measured(values) | self._norms.measured(values)


class ClipFeature(RunFeature):
    """The gradient norm at the step times the loss scale, over what clipping has left: the scale itself, or 1.

    Clipped after unscaling, the norm at the step is what clipping has left. Clipped before, it is that over the scale.
    Of clipped values, the largest gradient at the step: that it is just the limit over the scale is no chance.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "clip_scaled_ratio",
            "Gradient norm (or largest gradient) times loss scale over what clipping left: the scale; 1 if clipped "
            "before unscaling.",
            "ratio",
            "run",
        ),
    )

    def __init__(self) -> None:
        super().__init__(
            "clip_limit", "clip_limit", "gradient_norm", "gradient_norm_before_clip", "loss_scale", "clip_value",
            "gradient_abs_max",
        )  # fmt: skip

    def _observe(self, values: Array) -> dict[str, float] | None:
        limit, norm, before, scale, value = (self._one(signal, values) for signal in self._columns.signals[:5])
        if not math.isnan(value):
            return self._of_values(value, scale, self._columns.of("gradient_abs_max", values))
        if not math.isfinite(limit + norm + before + scale) or min(limit, before) <= 0:
            return None
        return {self.gauges[0].name: norm * scale / min(limit, before), "loss_scale": scale, "clip_limit": limit}

    def _of_values(self, limit: float, scale: float, largest: Array) -> dict[str, float] | None:
        largest = largest[np.isfinite(largest)]
        if not math.isfinite(limit + scale) or limit <= 0 or not len(largest):
            return None
        ratio = float(largest.max()) * scale / limit
        just = abs(ratio - 1) <= JUST
        return {self.gauges[0].name: 1.0 if just else scale, "loss_scale": scale, "clip_limit": limit}

    def measures(self, values: Array) -> Bools:
        """See `blocks`: records in which something was clipped."""
        limits = (self._columns.of_run(signal, values) for signal in ("clip_limit", "clip_value"))
        return np.logical_or(*map(np.isfinite, limits))


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (
        ClipFeature(),
        HistoryFeature(
            "loss_scale",
            DerivedSignal("loss_scale_to_peak_ratio", "loss_scale over its largest value so far.", "ratio", "run"),
            lambda past, peak: past[-1] / peak if peak > 0 else math.nan,
        ),
        HistoryFeature(
            "skipped_steps_total",
            DerivedSignal(
                "skipped_steps_ratio", f"Share of the last {WINDOW} steps that were skipped.", "ratio", "run"
            ),
            lambda past, peak: sum(past) / len(past),
        ),
        ZeroFeature(),
    )


RULES: tuple[Rule, ...] = (
    Rule(
        name="ClipOnScaledGradients",
        title="Gradients are clipped before they are unscaled",
        family="clip_limit",
        summary="Gradients are clipped while they are multiplied by the loss scale: each step is far too small.",
        description="At the step gradients are what clipping left (at most {clip_limit:.3g}) over the loss scale "
        "({loss_scale:.3g}).",
        thresholds=(
            Threshold(
                severity="critical",
                when=(Condition("clip_scaled_ratio", above=0.5, below=2.0), Condition("loss_scale", above=8.0)),
                for_points=3,
            ),
        ),
        abnormal=(Condition("clip_scaled_ratio", above=0.5, below=2.0), Condition("loss_scale", above=8.0)),
        source="clipped in the right order the ratio is the loss scale itself, which is above 8 here",
        remedy=("Call `scaler.unscale_(optimizer)` before `clip_grad_norm_` or `clip_grad_value_`.",),
        references=(MIXED,),
        fact=True,
    ),
    Rule(
        name="LossScaleCollapse",
        title="Loss-scale collapse",
        family="loss_scale",
        summary="The loss scale of the gradient scaler has collapsed.",
        description="The loss scale is {loss_scale:.3g}, {loss_scale_to_peak_ratio:.2g} of its largest value.",
        thresholds=(
            Threshold(
                severity="critical",
                when=(Condition("loss_scale", below=2.0), Condition("loss_scale_to_peak_ratio", below=0.001)),
            ),
        ),
        abnormal=(Condition("loss_scale", below=16.0), Condition("loss_scale_to_peak_ratio", below=0.01)),
        source="a scaler halves its scale at each overflow: 65,536 to below 2 takes sixteen overflows, and the rest no "
        "longer lifts small gradients into float16's range; a scale that started at 1 does not count",
        remedy=(
            "If gradients overflow at every scale, they are infinite without one: find the first non-finite value.",
            "Resume from a checkpoint before the onset, with a lower learning rate or in bfloat16.",
        ),
        references=(MIXED, OPT),
    ),
    Rule(
        name="StepsSkipped",
        title="Skipped optimizer steps",
        family="skipped_steps_total",
        summary="The gradient scaler skips most steps, because gradients are not finite.",
        description="{skipped_steps_ratio:.0%} of the last 32 steps were skipped.",
        thresholds=(Threshold(severity="warning", when=(Condition("skipped_steps_ratio", above=0.5),)),),
        abnormal=(Condition("skipped_steps_ratio", above=0.25),),
        warm_up=WINDOW,
        source="half of 32 steps; a scaler skips about ten steps at the start, to find its scale, and one in 2,000 "
        "later",
        remedy=(
            "A skipped step learns nothing. Find the first layer whose gradient is not finite.",
            "Train in bfloat16, or resume from a checkpoint before the onset with a lower learning rate.",
        ),
        references=(MIXED, OPT),
    ),
    Rule(
        name="GradientUnderflow",
        title="Gradient underflow",
        family="gradient_zero",
        summary="Gradients are too small for float16.",
        description="In the median layer, {gradient_underflow_ratio:.0%} of the nonzero gradients are subnormal in "
        "float16, "
        "and {gradient_zero_median_ratio:.0%} of all are zero.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(
                    Condition("gradient_underflow_ratio", above=0.5),
                    Condition("gradient_zero_median_ratio", above=0.3),
                ),
                for_points=8,
            ),
        ),
        abnormal=(Condition("gradient_underflow_ratio", above=0.3), Condition("gradient_zero_median_ratio", above=0.2)),
        source="half of the nonzero gradients below 2^-14, where digits are lost; a third below 2^-24, which is 0 "
        f"({MIXED})",
        remedy=(
            "Use a gradient scaler (`torch.amp.GradScaler`), or train in bfloat16.",
            "If the loss has a small weight or is a mean over very many elements, its gradients are tiny: scale it up.",
        ),
        references=(MIXED,),
    ),
    Rule(
        name="ZeroGradients",
        title="Zero gradients",
        family="gradient_zero",
        summary="Nearly all gradients have become exactly zero.",
        description="{gradient_zero_median_ratio:.0%} of the gradients of the median layer are exactly zero, "
        "{gradient_zero_rise:.0%} more than where they were first measured.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("gradient_zero_median_ratio", above=0.9), Condition("gradient_zero_rise", above=0.5)),
                for_points=3,
            ),
            Threshold(
                severity="warning",
                when=(
                    Condition("gradient_zero_median_ratio", above=0.9),
                    Condition("gradient_never_ratio", above=0.999),
                ),
                for_points=4,
                summary="All gradients have been exactly zero since the first step.",
            ),
            Threshold(
                severity="warning",
                when=(Condition("gradient_zero_median_ratio", above=0.9), Condition("gradient_never_ratio", above=0.5)),
                for_points=6,
                summary="The gradients of most layers have been exactly zero since the first step.",
            ),
            Threshold(
                severity="warning",
                when=(
                    Condition("gradient_zero_median_ratio", above=0.9),
                    Condition("gradient_norms_zero_steps", above=31.0),
                ),
                for_points=2,
                summary="All gradients have become exactly zero.",
            ),
        ),
        abnormal=(Condition("gradient_zero_median_ratio", above=0.7),),
        source=f"nine tenths of the values of the median layer; a ReLU language model reaches 0.6 ({CALIBRATED}); that "
        "the norms of all layers stay 0 for 32 steps is no chance",
        remedy=(
            "If they were zero from the first step on: are units dead from the start (weights at zero, biases far "
            "below), or has the loss no slope (a clamp that is always reached, a softmax over one number)?",
            "Dead units do not recover: lower the learning rate, and resume from a checkpoint before the onset.",
            "In float16 without a gradient scaler: use one, or train in bfloat16.",
            "Check whether the loss still depends on every part of the network.",
        ),
        references=(RELU, MIXED),
    ),
)
