"""Gradient explosion and vanishing gradients."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stabwatch.alerts.blocks import Block
from stabwatch.alerts.columns import LayerColumns
from stabwatch.alerts.data_change import CHANGED
from stabwatch.alerts.features import WINDOW, DerivedSignal, Duration, Feature, RunFeature, ScalarFeature, own_signals
from stabwatch.alerts.objectives import OwnData
from stabwatch.alerts.references import CALIBRATED, RELU, ZCLIP
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array, Bools, Ints, after_each, column_medians, median, middle, row_medians
from stabwatch.runlog import SeriesKey

FEWEST = 4
"""Layers from which on they are compared over the depth."""
OVER_DEPTH, OPEN = 1e-3, 47.0
"""Share of the largest gradient that a quarter of the layers is below, and for more than how many steps."""


class GradientFeature(ScalarFeature):
    """The gradient norm: before clipping where `clip_grad_norm_` is called, else at the optimizer step.

    The norm at the optimizer step covers finite elements only. A point with non-finite elements is left out, as its
    norm says little.
    """

    def __init__(self) -> None:
        super().__init__("gradient_norm", "gradient_norm_before_clip", "gradient_norm")
        self._bad = LayerColumns("gradient_nonfinite_total")
        self._batches = LayerColumns("batch_shift_ratio")
        self.gauges = (
            *self.gauges,
            DerivedSignal(
                "gradient_batch_shift_ratio", "batch_shift_ratio beside the gradient norm; 0 where not known.", "ratio",
                "run",
            ),
        )  # fmt: skip

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Feature."""
        super().bind(keys)
        self._bad.bind(keys)
        self._batches.bind(keys)

    def _pick(self, values: Array) -> float:
        found = super()._pick(values)
        broken = self._used == "gradient_norm" and (self._bad.of("gradient_nonfinite_total", values) > 0).any()
        return math.nan if broken else found

    def _observe(self, values: Array) -> dict[str, float] | None:
        found = super()._observe(values)
        shifts = np.nan_to_num(self._batches.of("batch_shift_ratio", values))
        return None if found is None else found | {self.gauges[-1].name: float(shifts[0]) if len(shifts) else 0.0}

    measures = own_signals

    def observe_block(self, steps: Ints, values: Array) -> Block | None:
        """See `blocks`."""
        if len(self._past) < WINDOW:
            return None
        x = self._column(self._used, values)
        if self._used == "gradient_norm":
            x = np.where((self._bad.of("gradient_nonfinite_total", values) > 0).any(axis=1), np.nan, x)
        rows = np.flatnonzero(np.isfinite(x))
        shifts = np.nan_to_num(self._batches.of_run("batch_shift_ratio", values[rows]))
        return self._many(rows, self._numbers_many(x[rows]) | {self.name: x[rows], self.gauges[-1].name: shifts})


class VanishingFeature(RunFeature):
    """Vanishing gradients: the gradient RMS relative to its peak, beside the progress of the loss.

    rms to peak: median over layers of the gradient RMS over its peak in the run; then the median of the last 16 points.
        The peak is that of medians of 5 points, so one early explosion does not set it.
    depth: the gradient RMS of the layer at the lower quartile over that of the largest, in one record; NaN with fewer
        than four layers. Beside it for how many steps that is small.
    remaining: loss over its first value. stall: loss over its value 32 points before. Both are medians of 16 points,
        and NaN while the loss is not positive, and where the model makes its own data or is one of two players: such a
        loss does not say what is learned.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "gradient_rms_to_peak_ratio",
            "Median over layers of the gradient RMS over its peak, the largest median of 5 values so far.",
            "ratio",
            "run",
        ),
        DerivedSignal("loss_remaining_ratio", "Loss over its first value, as medians of 16 values.", "ratio", "run"),
        DerivedSignal(
            "gradient_depth_ratio",
            "Gradient RMS of the layer at the lower quartile over that of the layer with the largest.",
            "ratio",
            "run",
        ),
        DerivedSignal(
            "gradient_depth_steps",
            f"Steps for which gradient_depth_ratio has been below {OVER_DEPTH:g}.",
            "1",
            "run",
        ),
        DerivedSignal(
            "loss_stall_ratio", "Loss over its value 32 points before, as medians of 16 values.", "ratio", "run"
        ),
    )
    _SMOOTH, _BEFORE, _LEVEL = 16, 32, 5

    def __init__(self) -> None:
        self._loss = LayerColumns("loss", "calls_without_gradient", "opponent_steps")
        self._peak, self._recent = np.empty(0), np.empty((self._LEVEL, 0))
        super().__init__("gradient_vanishing", "gradient_rms")

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Feature."""
        super().bind(keys)
        self._loss.bind(keys)
        more = len(self._columns.layers) - len(self._peak)
        self._peak = np.append(self._peak, np.full(more, np.nan))
        self._recent = np.pad(self._recent, ((0, 0), (0, more)), constant_values=np.nan)

    def _begin(self) -> None:
        self._peak[:] = np.nan
        self._recent = np.full((self._LEVEL, len(self._peak)), np.nan)
        self._ratios: deque[float] = deque(maxlen=self._SMOOTH)
        self._losses: deque[float] = deque(maxlen=self._SMOOTH)
        self._levels: deque[float] = deque(maxlen=self._BEFORE)
        self._first = math.nan
        self._far = Duration()
        self._own = OwnData()

    def _observe(self, values: Array) -> dict[str, float] | None:
        loss, says = self._loss.of("loss", values), self._says(values[None])[0]
        if len(loss) and math.isfinite(loss[0]):
            self._losses.append(float(loss[0]))
        now = self._columns.of("gradient_rms", values)
        if np.isnan(now).all():
            return None
        now = np.where(np.isfinite(now), now, np.nan)
        self._recent[self._points % self._LEVEL] = now
        self._peak = np.fmax(self._peak, column_medians(self._recent))
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = now / self._peak
        self._ratios.append(median(ratio[np.isfinite(ratio)]))
        remaining, stall = (x if says else math.nan for x in self._of_loss())
        depth = _over_depth(now[None])[0]
        far = self._for_steps(self._step, depth)
        numbers = (median(np.array(self._ratios)), remaining, depth, far, stall)
        return {gauge.name: n for gauge, n in zip(self.gauges, numbers, strict=True)}

    def _says(self, values: Array) -> Bools:
        """In which records (n, series) the loss says what is learned: not where the model acts, or plays."""
        loss, acted, opposed = (self._loss.of_run(signal, values) for signal in self._loss.signals)
        known = np.isfinite(loss)
        made = np.concatenate([[self._own.made], self._own.records(acted[known], opposed[known])])
        return ~made[np.cumsum(known)]

    def _of_loss(self) -> tuple[float, float]:
        """Remaining and stall."""
        if len(self._losses) < self._SMOOTH:
            return math.nan, math.nan
        now = median(np.array(self._losses))
        if math.isnan(self._first):
            self._first = now
        before = self._levels[0] if len(self._levels) == self._BEFORE else math.nan
        self._levels.append(now)
        return tuple(now / past if past > 0 < now else math.nan for past in (self._first, before))  # type: ignore[return-value]

    def measures(self, values: Array) -> Bools:
        """See `blocks`."""
        return self._columns.measured(values) | self._loss.measured(values)

    def observe_block(self, steps: Ints, values: Array) -> Block | None:
        """See `blocks`."""
        losses, now = self._loss.of_run("loss", values), self._columns.of("gradient_rms", values)
        rows = np.flatnonzero(~np.isnan(now).all(axis=1))
        if len(rows) and len(self._levels) < self._BEFORE:
            return None
        known, says = np.isfinite(losses), self._says(values)[rows]
        past, x = np.array(self._losses), losses[known]
        self._losses.extend(x[-self._SMOOTH :].tolist())
        if not len(rows):
            return self._many(rows, {})
        level = middle(np.sort(after_each(past, x)[np.cumsum(known)[rows]], axis=1))
        before = np.concatenate([np.array(self._levels), level])[: len(level)]
        self._levels.extend(level[-self._BEFORE :].tolist())
        with np.errstate(invalid="ignore", divide="ignore"):
            remaining, stall = (
                np.where((p > 0) & (level > 0) & says, level / p, np.nan) for p in (self._first, before)
            )
        depth = _over_depth(np.where(np.isfinite(now[rows]), now[rows], np.nan))
        far = np.array([self._for_steps(*x) for x in zip(steps[rows].tolist(), depth.tolist(), strict=True)])
        numbers = (self._faded(now[rows]), remaining, depth, far, stall)
        return self._many(rows, dict(zip((g.name for g in self.gauges), numbers, strict=True)))

    def _for_steps(self, step: float, depth: float) -> float:
        return math.nan if math.isnan(depth) else self._far.at(step, depth < OVER_DEPTH)

    def _faded(self, now: Array) -> Array:
        """The gradient RMS to its peak, smoothed, of measured points (n, layers)."""
        now = np.where(np.isfinite(now), now, np.nan)
        order = (self._points + np.arange(1, self._LEVEL)) % self._LEVEL
        recent = np.sort(sliding_window_view(np.vstack([self._recent[order], now]), self._LEVEL, axis=0), axis=2)
        lower = ((~np.isnan(recent)).sum(axis=2, keepdims=True) - 1) // 2
        levels = np.take_along_axis(recent, lower, axis=2)[:, :, 0]
        peaks = np.fmax.accumulate(np.vstack([self._peak, levels]), axis=0)[1:]
        for i in range(max(0, len(now) - self._LEVEL), len(now)):
            self._recent[(self._points + i) % self._LEVEL] = now[i]
        self._peak = peaks[-1].copy()
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = row_medians(now / peaks)
        smooth = middle(np.sort(after_each(np.array(self._ratios), ratios)[1:], axis=1))
        self._ratios.extend(ratios[-self._SMOOTH :].tolist())
        return smooth


def _over_depth(now: Array) -> Array:
    """The lower quartile of each record of values (n, layers) over its largest; NaN for fewer than `FEWEST` layers."""
    known = (~np.isnan(now)).sum(axis=1)
    largest = np.fmax.reduce(now, axis=1, initial=-math.inf)
    with np.errstate(invalid="ignore", divide="ignore"):
        place = np.maximum(known - 1, 0)[:, None] // 4  # NaN is sorted to the end
        low = np.take_along_axis(np.sort(now, axis=1), place, axis=1)[:, 0] if now.shape[1] else largest
        return np.where((known >= FEWEST) & (largest > 0), low / largest, np.nan)


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (GradientFeature(), VanishingFeature())


RULES: tuple[Rule, ...] = (
    Rule(
        name="GradientNormExplosion",
        title="Gradient explosion",
        family="gradient_norm",
        summary="The gradient norm has exploded.",
        description="The gradient norm is {gradient_norm:.4g}, {gradient_norm_to_median_ratio:.3g} times its recent "
        "median.",
        thresholds=(
            Threshold(
                severity="critical",
                when=(
                    Condition("gradient_norm_to_median_ratio", above=100.0),
                    Condition("gradient_norm_robust_z", above=6.0),
                ),
                for_points=3,
            ),
            Threshold(
                severity="warning",
                when=(
                    Condition("gradient_norm_to_median_ratio", above=10.0),
                    Condition("gradient_norm_robust_z", above=6.0),
                    Condition("gradient_batch_shift_ratio", below=CHANGED),
                ),
                for_points=3,
            ),
        ),
        abnormal=(Condition("gradient_norm_robust_z", above=4.0),),
        warm_up=24,
        source="ten times the recent median, and outside its usual variation; a hundred times where the data change",
        remedy=(
            "Clip the global gradient norm at its usual size.",
            "Check the batches of these steps, and the layer whose gradient norm rose first.",
            "Lower the learning rate. In a recurrent model, check the largest singular value of the recurrent weights.",
        ),
        references=(ZCLIP,),
    ),
    Rule(
        name="VanishingGradients",
        title="Vanishing gradients",
        family="gradient_vanishing",
        summary="Gradients have vanished, and the loss no longer falls.",
        description="The gradient RMS of the median layer is {gradient_rms_to_peak_ratio:.2g} of its peak. "
        "The loss has stopped falling at {loss_remaining_ratio:.0%} of its first value.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(
                    Condition("gradient_rms_to_peak_ratio", below=0.02),
                    Condition("loss_remaining_ratio", above=0.5),
                    Condition("loss_stall_ratio", above=0.97),
                ),
                for_points=8,
            ),
        ),
        abnormal=(Condition("gradient_rms_to_peak_ratio", below=0.05), Condition("loss_remaining_ratio", above=0.5)),
        warm_up=24,
        source=f"healthy runs with half of their loss remaining keep a fifth of their gradient RMS ({CALIBRATED})",
        remedy=(
            "If the first layers have the smallest gradients, warm up longer and use pre-norm.",
            "Resume from a checkpoint before the onset: a network in this state does not recover.",
        ),
        references=(RELU,),
    ),
    Rule(
        name="VanishingOverDepth",
        title="Gradients vanish over the depth of the model",
        family="gradient_vanishing",
        summary="Gradients vanish on their way through the layers, and nothing is learned.",
        description="The gradient RMS of a quarter of the layers is {gradient_depth_ratio:.2g} or less of that of the "
        "layer with the largest. The loss is {loss_remaining_ratio:.0%} of its first value.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(
                    Condition("gradient_depth_ratio", below=OVER_DEPTH),
                    Condition("gradient_depth_steps", above=OPEN),
                    Condition("loss_remaining_ratio", above=0.95),
                ),
            ),
        ),
        abnormal=(Condition("gradient_depth_ratio", below=OVER_DEPTH), Condition("loss_remaining_ratio", above=0.95)),
        source="a thousandth, in a quarter of the layers, for 48 steps, while a twentieth of the loss or less is "
        "learned: layers of a healthy model are within a factor of a hundred, once blocks have opened that begin at a "
        "scale of next to nothing",
        remedy=(
            "Add shortcuts around the layers, or norms before them; or use fewer layers.",
            "Initialise weights so that activations keep their size: `kaiming_normal_` for ReLU.",
        ),
        references=(RELU,),
    ),
)
