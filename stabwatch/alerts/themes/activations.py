"""Growth of activations and of the residual stream, and representation drift."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stabwatch.alerts.blocks import Block, BlockGauges, OnDemand
from stabwatch.alerts.columns import LayerColumns, RollingWindow
from stabwatch.alerts.features import WINDOW, DerivedSignal, Feature, MedianFeature, own_signals, rising
from stabwatch.alerts.references import CALIBRATED, CHAOS, MAXACT, PARCAE, RESIDUAL, SHESHA
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array, Ints
from stabwatch.runlog import SeriesKey


class ActivationFeature:
    """Growth of each layer's largest activation: the value over the minimum of its last 64 points.

    The maximum covers finite elements only. A point with non-finite elements is left out, as its maximum says little.
    """

    name = "activation"
    signal = "activation_abs_max"
    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "activation_growth_ratio", f"activation_abs_max over the minimum of its last {WINDOW} values.", "ratio"
        ),
    )

    def __init__(self) -> None:
        self._columns = LayerColumns(self.signal, "activation_nonfinite_total")
        self._ring = RollingWindow(WINDOW)

    @property
    def layers(self) -> list[str]:
        """Layers in forward order."""
        return self._columns.layers

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Feature."""
        self._columns.bind(keys)
        self._ring.grow(len(self.layers))

    def restart(self) -> None:
        """See Feature."""
        self._ring.clear()

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """See Feature."""
        now, bad = (self._columns.of(signal, values) for signal in self._columns.signals)
        now[bad > 0] = np.nan
        rows = np.flatnonzero(np.isfinite(now))
        if not len(rows):
            return None
        self._ring.push(rows, step, now[rows])
        ratio = np.full(len(now), np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio[rows] = now[rows] / np.fmin.reduce(self._ring.values[rows], axis=1)
        return {self.gauges[0].name: ratio, self.signal: now, "points": self._ring.count.astype(np.float64)}

    measures = own_signals

    def observe_block(self, steps: Ints, values: Array) -> Block:
        """See `blocks`. The minimum is looked for where it is asked for."""
        now, bad = (self._columns.of(signal, values) for signal in self._columns.signals)
        now[bad > 0] = np.nan
        rows = np.flatnonzero(np.isfinite(now).any(axis=1))
        now = now[rows]
        if not len(rows):
            return rows, BlockGauges({"points": now})
        finite = np.isfinite(now)
        past = self._ring.extend(steps[rows], now, finite)

        def growth(records: Ints, layers: Ints) -> Array:
            least = np.fmin.reduce(past.at(records, layers)[1], axis=1)
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.where(finite[records, layers], now[records, layers] / least, np.nan)

        columns: dict[str, Array | OnDemand] = {self.gauges[0].name: OnDemand(growth, finite), self.signal: now}
        return rows, BlockGauges(columns | {"points": past.number.astype(np.float64)})


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (
        ActivationFeature(),
        rising("residual_growth"),
        rising("backward_growth"),
        rising("loop_gain_ratio"),
        MedianFeature(
            "geometry_drift",
            "geometry_drift",
            DerivedSignal("geometry_drift_median", "Median over layers of geometry_drift.", scope="run"),
            jump=DerivedSignal(
                "geometry_drift_jump", "geometry_drift_median minus its value at the previous point.", scope="run"
            ),
        ),
    )


RULES: tuple[Rule, ...] = (
    Rule(
        name="ActivationOutlierGrowth",
        title="Exploding activations",
        family="activation",
        summary="The activations of a layer have grown by an order of magnitude or more.",
        description="The largest activation of {where} is {activation_abs_max:.4g}, "
        "{activation_growth_ratio:.3g} times its recent minimum.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("activation_abs_max", above=1000.0), Condition("activation_growth_ratio", above=50.0)),
                for_points=2,
            ),
        ),
        abnormal=(Condition("activation_abs_max", above=100.0), Condition("activation_growth_ratio", above=10.0)),
        source=f"massive activations: above 100 and above 1000 times the median ({MAXACT}); 50-fold growth in 64 "
        "points",
        remedy=(
            "Lower the learning rate. Check the update-to-weight ratio of this layer; 1e-3 is usual.",
            "Long term: normalise branch outputs, or scale residual branches down with depth.",
        ),
        references=(MAXACT,),
    ),
    Rule(
        name="ResidualStreamGrowth",
        title="Exploding residual stream",
        family="residual_growth",
        summary="The residual stream grows strongly from block to block.",
        description="The output RMS grows by a factor of exp({residual_growth:.2g}) per block of {where}; the "
        "exponent is "
        "{residual_growth_rise:.2g} higher than at the start.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("residual_growth", above=2.0), Condition("residual_growth_rise", above=1.0)),
                for_points=3,
            ),
        ),
        abnormal=(Condition("residual_growth", above=1.0), Condition("residual_growth_rise", above=0.5)),
        source=f"2 is sevenfold growth per block ({RESIDUAL}); healthy stacks reach 1.1 ({CALIBRATED})",
        remedy=(
            "Lower the learning rate. Check branch_trunk_ratio of the first blocks.",
            "Long term: normalise each branch, or scale its output by 1 / sqrt(2 x depth).",
        ),
        references=(RESIDUAL,),
    ),
    Rule(
        name="LoopGrowth",
        title="Exploding loop",
        family="loop_gain_ratio",
        summary="The state of a looped module grows a hundredfold within one forward.",
        description="The output of {where} is {loop_gain_ratio:.3g} times as large in the last call of a forward as in "
        "the first; that is {loop_gain_ratio_rise:.3g} more than at the start.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("loop_gain_ratio", above=100.0), Condition("loop_gain_ratio_rise", above=50.0)),
                for_points=2,
            ),
        ),
        abnormal=(Condition("loop_gain_ratio", above=10.0), Condition("loop_gain_ratio_rise", above=5.0)),
        source=f"a linear loop that keeps its norm grows with the number of calls, 16-fold in 16; 100 is another law "
        f"({PARCAE}; docs/validation.md)",
        remedy=(
            "Lower the learning rate. Check the singular values of what feeds the state back: below 1 it is stable.",
            "Long term: a decay between 0 and 1 for each feature of the state, not a matrix; or a norm in the loop.",
        ),
        references=(PARCAE,),
    ),
    Rule(
        name="GradientGrowthOverDepth",
        title="Gradients explode on their way back",
        family="backward_growth",
        summary="The gradient grows strongly from block to block on its way back.",
        description="The gradient's RMS grows by a factor of exp({backward_growth:.2g}) per block of {where} on its "
        "way back; the exponent is {backward_growth_rise:.2g} higher than at the start.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("backward_growth", above=2.0), Condition("backward_growth_rise", above=1.0)),
                for_points=3,
            ),
        ),
        abnormal=(Condition("backward_growth", above=1.0), Condition("backward_growth_rise", above=0.5)),
        source=f"2 is sevenfold growth per block, as for the stream itself; at 0 a network is at the edge of chaos "
        f"({CHAOS})",
        remedy=(
            "Lower the learning rate. Check the singular values and the branch_trunk_ratio of these blocks.",
            "Long term: normalise each branch, or scale its output by 1 / sqrt(2 x depth).",
        ),
        references=(CHAOS, RESIDUAL),
    ),
    Rule(
        name="RepresentationDrift",
        title="Representation drift",
        family="geometry_drift",
        summary="The representation of the fixed batch has changed its geometry.",
        description="The token distances of the fixed batch have drifted by {geometry_drift_median:.2g} in the median "
        "layer, {geometry_drift_jump:.2g} of it since the previous point. At 1 they are unrelated to the reference.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("geometry_drift_median", above=0.3), Condition("geometry_drift_jump", above=0.2)),
                summary="The representation of the fixed batch changed abruptly.",
            ),
            Threshold(severity="warning", when=(Condition("geometry_drift_median", above=0.85),), for_points=3),
        ),
        abnormal=(Condition("geometry_drift_median", above=0.3),),
        source=f"1 means no correlation with the reference ({SHESHA}); a healthy ViT and a healthy GPT from scratch "
        "reach 0.7 in 240 steps and change by 0.1 per point; a 30-fold learning-rate spike changes it by 0.3",
        remedy=(
            "When fine-tuning: earlier learning is being lost. Lower the learning rate, or freeze the first layers.",
            "After a sudden jump: find what happened just before it, and return to an earlier checkpoint.",
            "If the reference was taken at initialisation, take a new one with `watch.probe` from a trained network.",
        ),
    ),
)
