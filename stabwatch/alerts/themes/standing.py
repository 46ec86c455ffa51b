"""What stands still: steps that are far too small, and parts of the model that never move."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

from stabwatch.alerts.blocks import Block, BlockGauges
from stabwatch.alerts.columns import LayerColumns
from stabwatch.alerts.features import DerivedSignal, Duration, Feature, PlainFeature, RunFeature, own_signals
from stabwatch.alerts.objectives import OwnData
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array, Bools, Ints, median, median_of_few
from stabwatch.runlog import SeriesKey

SMALL = 3e-5
"""Of a weight, in one update: a thousand such steps change it by 3 % at most."""
NOTHING = 1e-12
"""Below it a step changes nothing: that is `NoUpdates`."""
LEVEL = 16
"""Losses whose median is a level."""
CLIMBS = 1.001
STILL, BESIDE = 1e-6, 1e-4
"""Update over weight of a layer that stands still, and over that of the layer that moves most."""
FAINT = 1e-10
"""A gradient over the largest one that is as good as zero: its parts are lost in the rounding of the others' sums."""


class SlowFeature(RunFeature):
    """For how many steps updates have been tiny at a rate that does not climb, beside what the loss has lost since.

    NaN where the model makes its own data, or plays against another one.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "update_small_steps", f"Steps for which the median update has been below {SMALL:g} of the weights.", "1",
            "run",
        ),
        DerivedSignal(
            "loss_since_start_ratio", f"Median loss of the last {LEVEL} records over that of the first.", "ratio",
            "run",
        ),
    )  # fmt: skip

    def __init__(self) -> None:
        self._beside = LayerColumns("loss", "learning_rate", "calls_without_gradient", "opponent_steps")
        super().__init__("update_small", "update_to_weight_ratio")

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Feature."""
        super().bind(keys)
        self._beside.bind(keys)

    def _begin(self) -> None:
        self._losses: deque[float] = deque(maxlen=LEVEL)
        self._first = self._rate = math.nan
        self._small = Duration()
        self._own = OwnData()

    def _observe(self, values: Array) -> dict[str, float] | None:
        loss, rate, acted, opposed = [self._beside.number(signal, values) for signal in self._beside.signals]
        self._own.record(acted, opposed)
        if math.isfinite(loss):
            self._losses.append(loss)
            if len(self._losses) == LEVEL and math.isnan(self._first):
                self._first = median_of_few(self._losses)
        now = self._columns.of(self.signal, values)
        now = now[np.isfinite(now)]
        if not len(now):
            return None
        size, climbs = median(now), rate > CLIMBS * self._rate
        self._rate = rate
        steps = self._small.at(self._step, NOTHING < size < SMALL and not climbs)
        level = median_of_few(self._losses) if len(self._losses) == LEVEL else math.nan
        known = self._first > 0 and not self._own.made
        course = level / self._first if known else math.nan
        return dict(zip((g.name for g in self.gauges), (steps, course), strict=True)) | {"update": size}

    def measures(self, values: Array) -> Bools:
        """See `blocks`: each record counts."""
        return np.ones(len(values), dtype=bool)


class _SinceFirst(PlainFeature):
    """For how many steps something has been so at every point of a layer, from its first one on.

    Subclasses say of which layers what is known: `_so(now, values)`, for one record or many.
    """

    def __init__(self, signal: str, gauge: DerivedSignal) -> None:
        super().__init__(signal)
        self.gauges, self._since = (gauge,), np.empty(0)

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Feature."""
        super().bind(keys)
        self._since = np.append(self._since, np.full(len(self.layers) - len(self._since), np.inf))

    def restart(self) -> None:
        """See Feature."""
        super().restart()
        self._since[:] = np.inf

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """See Feature."""
        numbers = super().update(step, values)
        if numbers is None:
            return None
        so, known = self._so(numbers[self.signal], values)
        begins = known & so & np.isinf(self._since)
        self._since = np.where(begins, step, np.where(known & ~so, np.nan, self._since))
        return numbers | {self.gauges[0].name: _steps(step - self._since, known)}

    def observe_block(self, steps: Ints, values: Array) -> Block:
        """See `blocks`."""
        rows, numbers = super().observe_block(steps, values)
        now = numbers.of(self.signal)
        so, known = self._so(now, values)
        first = np.minimum.accumulate(np.where(known & so, np.arange(len(steps))[:, None], len(steps)), axis=0)
        since = np.where(np.isinf(self._since), np.append(steps, np.inf)[first], self._since)
        since = np.where(np.logical_or.accumulate(known & ~so, axis=0), np.nan, since)
        self._since = since[-1].copy()
        lasting = {self.gauges[0].name: _steps(np.asarray(steps[:, None] - since, np.float64), known)}
        return rows, BlockGauges({self.signal: now, "points": numbers.of("points")} | lasting)

    def _so(self, now: Array, values: Array) -> tuple[Bools, Bools]:
        """Where it is so, and where that is known: (..., layers) each. now: of the signal. values: (..., series)."""
        raise NotImplementedError


def _steps(since: Array, known: Bools) -> Array:
    """Steps since the first one, NaN where nothing is known now; 0 where it is not so."""
    return np.where(known, np.nan_to_num(since, nan=0.0, neginf=0.0), np.nan)


def _of_layers(layers: Sequence[str], columns: LayerColumns, signal: str, values: Array) -> Array:
    """Values of a signal of these layers, (..., layers); NaN of those that are not among the columns."""
    row = {layer: i for i, layer in enumerate(columns.layers)}
    found = columns.of(signal, values)
    absent = np.full((*found.shape[:-1], 1), np.nan)
    return np.concatenate([found, absent], axis=-1)[..., [row.get(layer, -1) for layer in layers]]


class StillFeature(_SinceFirst):
    """Layers whose updates are next to nothing beside those of others, and which have a gradient."""

    def __init__(self) -> None:
        super().__init__(
            "update_to_weight_ratio",
            DerivedSignal("layer_still_steps", "Steps for which the layer has stood still while others moved."),
        )
        self.name = "layer_still"
        self._norms = LayerColumns("layer_gradient_norm")

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Feature."""
        super().bind(keys)
        self._norms.bind(keys)

    def _so(self, now: Array, values: Array) -> tuple[Bools, Bools]:
        norms = _of_layers(self.layers, self._norms, "layer_gradient_norm", values)
        most, steepest = (np.fmax.reduce(x, axis=-1, keepdims=True, initial=0.0) for x in (now, norms))
        so = (now < STILL) & (now < BESIDE * most) & (norms > FAINT * steepest)
        return so, ~np.isnan(now) & (most > STILL)

    measures, observe_block = own_signals, _SinceFirst.observe_block


class ZeroFeature(_SinceFirst):
    """Layers whose gradient has been zero at every point, or as good as zero, while others have one."""

    def __init__(self) -> None:
        super().__init__(
            "layer_gradient_norm",
            DerivedSignal(
                "gradient_always_zero_steps",
                f"Steps for which the gradient of the layer has been zero, or below {FAINT:g} of the largest.",
            ),
        )
        largest = "Gradient norm of the layer over that of the layer with the largest."
        self.gauges = (*self.gauges, DerivedSignal("gradient_to_largest_ratio", largest, "ratio"))
        self.name = "layer_zero"
        self._missing = LayerColumns("gradient_missing_ratio")

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Feature."""
        super().bind(keys)
        self._missing.bind(keys)

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """See Feature."""
        numbers = super().update(step, values)
        return None if numbers is None else numbers | {self.gauges[1].name: _to_largest(numbers[self.signal])}

    def observe_block(self, steps: Ints, values: Array) -> Block:
        """See `blocks`."""
        rows, found = super().observe_block(steps, values)
        numbers = {name: found.of(name) for name in (self.signal, "points", self.gauges[0].name)}
        return rows, BlockGauges(numbers | {self.gauges[1].name: _to_largest(numbers[self.signal])})

    def _so(self, now: Array, values: Array) -> tuple[Bools, Bools]:
        missing = _of_layers(self.layers, self._missing, "gradient_missing_ratio", values)
        share = _to_largest(now)
        return (share < FAINT) & ~(missing > 0), ~np.isnan(share)

    measures = own_signals


def _to_largest(norms: Array) -> Array:
    """Of the layers (..., layers); NaN where none has a gradient."""
    most = np.fmax.reduce(norms, axis=-1, keepdims=True, initial=0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(most > 0, norms / most, np.nan)


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (SlowFeature(), StillFeature(), ZeroFeature())


RULES: tuple[Rule, ...] = (
    Rule(
        name="UpdatesTooSmall",
        title="Updates are far too small",
        family="update_small",
        summary="Updates are far too small, and the loss stays where it began: the learning rate is too low, or "
        "gradients are cut down.",
        description="An update changes the weights of the median layer by {update:.2g} of their norm, for "
        "{update_small_steps:.0f} steps; 0.001 is usual. The loss is {loss_since_start_ratio:.0%} of what it was at "
        "the start.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("update_small_steps", above=99.0), Condition("loss_since_start_ratio", above=0.97)),
            ),
        ),
        abnormal=(Condition("update_small_steps", above=0.0), Condition("loss_since_start_ratio", above=0.97)),
        source="a thirtieth of the usual size for 100 steps, at a rate that does not climb, without progress: the "
        "smallest usual rates of fine-tuning (1e-6) change weights of 0.02 by 5e-5",
        remedy=(
            "Raise the learning rate: ten times, until updates are about a thousandth of the weights.",
            "Is the gradient clipped far below its usual norm, or the loss divided twice?",
        ),
        fact=True,
    ),
    Rule(
        name="LayerStandsStill",
        title="A part of the model stands still",
        family="layer_still",
        summary="A part of the model has a gradient and is next to never changed, while other parts are trained.",
        description="The updates of {where} are {update_to_weight_ratio:.2g} of its weights, for "
        "{layer_still_steps:.0f} steps.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("update_to_weight_ratio", below=STILL), Condition("layer_still_steps", above=63.0)),
                for_points=2,
            ),
        ),
        abnormal=(Condition("update_to_weight_ratio", below=STILL),),
        source="a millionth, and a ten-thousandth of the updates elsewhere, from the first point on: rates that fall "
        "over the layers differ by a factor of a hundred",
        remedy=(
            "Print `optimizer.param_groups`: which rate has the group of these parameters?",
            "Is their gradient far below that of others? With SGD a term of the loss with a tiny weight moves nothing; "
            "with a gradient scaler each term must be scaled.",
            "If they should stay as they are, set requires_grad to False: that saves their gradients too.",
        ),
        fact=True,
    ),
    Rule(
        name="PartWithZeroGradient",
        title="The gradient of a part of the model is zero",
        family="layer_zero",
        summary="The gradient of a part of the model has been zero from the start, or as good as zero: it is never "
        "trained.",
        description="The gradient norm of {where} is {layer_gradient_norm:.3g}. It has been zero, or less than a "
        "ten-billionth of the largest, at each point for {gradient_always_zero_steps:.0f} steps.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(
                    Condition("gradient_to_largest_ratio", below=FAINT),
                    Condition("gradient_always_zero_steps", above=31.0),
                ),
                for_points=2,
            ),
        ),
        abnormal=(Condition("gradient_to_largest_ratio", below=FAINT),),
        source="zero but for rounding for 32 steps: an adapter that begins at zero has a gradient after one step, and "
        "a branch that begins with a factor of a millionth has a millionth of it",
        remedy=(
            "Look for what has no slope between this part and the loss: rounding, a sign, an index, a comparison, a "
            "softmax over one number, a clamp that is always reached, a gate that is shut, a factor of 0; in a "
            "recurrent model: is the last place that of padding?",
            "A straight-through gradient: `x + (x.round() - x).detach()`.",
            "If the part waits for another stage of the training, no action is needed.",
        ),
        fact=True,
    ),
)
