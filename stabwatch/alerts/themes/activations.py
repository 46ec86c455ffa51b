"""Activations and the residual stream that grow, and representations that drift."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stabwatch.alerts.features import WINDOW, DerivedSignal, Feature, LayerColumns, MedianFeature, RollingWindow, rising
from stabwatch.alerts.references import CALIBRATED, MAXACT, RESIDUAL, SHESHA
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array
from stabwatch.runlog import SeriesKey


class ActivationFeature:
    """A layer's largest activation over the least of its last 64 points: how far it has come up from where it was.

    The maximum is that of the finite elements; beside non-finite ones it says little, and such a point is left out.
    """

    name = "activation"
    signal = "activation_abs_max"
    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "activation_growth_ratio", f"activation_abs_max over the least of its last {WINDOW} values.", "ratio"
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
        """See Family."""
        self._columns.bind(keys)
        self._ring.grow(len(self.layers))

    def restart(self) -> None:
        """See Family."""
        self._ring.clear()

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """See Family."""
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


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (
        ActivationFeature(),
        rising("residual_growth"),
        MedianFeature(
            "geometry_drift",
            "geometry_drift",
            DerivedSignal("geometry_drift_median", "Median over layers of geometry_drift.", scope="run"),
            jump=DerivedSignal(
                "geometry_drift_jump", "geometry_drift_median less what it was at the point before.", scope="run"
            ),
        ),
    )


RULES: tuple[Rule, ...] = (
    Rule(
        name="ActivationOutlierGrowth",
        title="Exploding activations",
        family="activation",
        summary="Activations of a layer grow by orders of magnitude.",
        description="The largest activation of {where} is {activation_abs_max:.4g}, "
        "{activation_growth_ratio:.3g} times its recent least.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("activation_abs_max", above=1000.0), Condition("activation_growth_ratio", above=50.0)),
                for_points=2,
            ),
        ),
        abnormal=(Condition("activation_abs_max", above=100.0), Condition("activation_growth_ratio", above=10.0)),
        source=f"massive activations begin at 100 and 1000 times the median ({MAXACT}); 50-fold growth in 64 points",
        remedy=(
            "Lower the learning rate; look at the update-to-weight ratio of the layer named here (usual: 1e-3).",
            "For good: normalise branch outputs, or scale residual branches down with depth.",
        ),
        references=(MAXACT,),
    ),
    Rule(
        name="ResidualStreamGrowth",
        title="Exploding residual stream",
        family="residual_growth",
        summary="The residual stream grows from block to block.",
        description="From block to block of {where} the output RMS grows by the factor exp({residual_growth:.2g}), "
        "{residual_growth_rise:.2g} more than at first.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("residual_growth", above=2.0), Condition("residual_growth_rise", above=1.0)),
                for_points=3,
            ),
        ),
        abnormal=(Condition("residual_growth", above=1.0), Condition("residual_growth_rise", above=0.5)),
        source=f"2 is sevenfold in each block ({RESIDUAL}); healthy stacks reach 1.1 ({CALIBRATED})",
        remedy=(
            "Lower the learning rate; look at the branch over trunk of the first blocks named here.",
            "For good: normalise each branch, or scale its output by 1 / sqrt(2 x depth).",
        ),
        references=(RESIDUAL,),
    ),
    Rule(
        name="RepresentationDrift",
        title="Representation drift",
        family="geometry_drift",
        summary="What the network makes of the fixed batch has changed its geometry.",
        description="The token distances of the fixed batch have drifted by {geometry_drift_median:.2g} in the median "
        "layer, {geometry_drift_jump:.2g} since the point before; 1 is unrelated.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("geometry_drift_median", above=0.3), Condition("geometry_drift_jump", above=0.2)),
                summary="What the network makes of the fixed batch has changed its geometry at one blow.",
            ),
            Threshold(severity="warning", when=(Condition("geometry_drift_median", above=0.85),), for_points=3),
        ),
        abnormal=(Condition("geometry_drift_median", above=0.3),),
        source=f"1 is a geometry that has nothing of the reference ({SHESHA}); a healthy ViT and GPT from scratch "
        "reach 0.7 in 240 steps and move by 0.1 from point to point; a learning-rate spike of 30 times moves 0.3",
        remedy=(
            "Fine-tuning? What was learned before is being lost: lower the learning rate, or freeze the first layers.",
            "A sudden jump: look at what came just before it, and go back to a checkpoint from before.",
            "Was the reference taken at initialisation? Then take it again (`watch.probe`) from a trained network.",
        ),
    ),
)
