"""Derived signals by layer, and the list of all: trends and ratios to the own past, exported as gauges.

A *family* turns the raw series of a few signals into gauges over one axis of layers. Everything is a
function of the measured points so far, in order: one record at a time or many give the same numbers.
The time axis is the step, and a point exists only where a signal was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from stabwatch.alerts.layers import FadeFamily, MedianFamily, PlainFamily, WeightFamily
from stabwatch.alerts.points import Array, Columns, Derived, Family, Ring, RunFamily, slope
from stabwatch.alerts.precision import scaler_families
from stabwatch.alerts.ranks import ReplicaFamily, rank_spreads
from stabwatch.alerts.scalars import WINDOW, GradientFamily, LossFamily
from stabwatch.runlog import SeriesKey

ATTENTION_LIMIT = 100.0
"""QK-clip's tau: the largest attention logit that MuonClip lets stand."""
TREND = 32


class AttentionFamily:
    """The best known lower bound of each layer's largest attention logit, its growth, and the steps left.

    bound: the exact value where it was measured, else the lower end of the bracket. growth: slope of ln(bound)
    per step by least squares over the last 32 points. steps to limit: at that growth, until 100. rise: bound over
    its first value, so that a model that came with large logits (a fine-tuned one) is told from one that grows them.
    Bounds below 1 count as 1.
    """

    name = "attention_logit"
    signal = "attention_logit_lower"
    gauges: tuple[Derived, ...] = (
        Derived("attention_logit_bound", "Largest attention logit that is certain: exact, or the bracket's lower end."),
        Derived("attention_logit_growth", f"Slope of ln(attention_logit_bound) per step over its last {TREND} points."),
        Derived(
            "attention_logit_steps_to_limit",
            f"Steps until the bound reaches {ATTENTION_LIMIT:g} at its present growth.",
        ),
        Derived("attention_logit_rise_ratio", "attention_logit_bound over its first value of the run.", "ratio"),
    )

    def __init__(self) -> None:
        self._columns = Columns("attention_logit_lower", "attention_logit_max")
        self._ring = Ring(TREND)
        self._first = np.empty(0)

    @property
    def layers(self) -> list[str]:
        """Layers in forward order."""
        return self._columns.layers

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Family."""
        self._columns.bind(keys)
        self._ring.grow(len(self.layers))
        self._first = np.append(self._first, np.full(len(self.layers) - len(self._first), np.nan))

    def restart(self) -> None:
        """See Family."""
        self._ring.clear()
        self._first[:] = np.nan

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """See Family."""
        lower, exact = (self._columns.of(signal, values) for signal in self._columns.signals)
        bound = np.fmax(lower, exact)
        bound[np.isneginf(bound)] = np.nan  # no finite row at all: nothing is known, and nothing is calm
        if np.isnan(bound).all():
            return None
        sized = np.maximum(bound, 1.0)
        rows = np.flatnonzero(np.isfinite(bound))
        self._ring.push(rows, step, np.log(sized[rows]))
        self._first[rows] = np.where(np.isnan(self._first[rows]), sized[rows], self._first[rows])
        growth = np.full(len(bound), np.nan)
        growth[rows] = slope(self._ring.steps[rows], self._ring.values[rows])
        with np.errstate(invalid="ignore", divide="ignore"):
            left = np.log(ATTENTION_LIMIT / sized) / growth
        left = np.where(bound >= ATTENTION_LIMIT, 0.0, np.where(growth > 0, left, np.inf))
        left[np.isnan(bound)] = np.nan
        numbers = (bound, growth, left, sized / np.where(np.isnan(self._first), 1.0, self._first))
        return {gauge.name: column for gauge, column in zip(self.gauges, numbers, strict=True)} | {
            "points": self._ring.count.astype(np.float64)
        }


class ActivationFamily:
    """A layer's largest activation over the least of its last 64 points: how far it has come up from where it was.

    The maximum is that of the finite elements; beside non-finite ones it says little, and such a point is left out.
    """

    name = "activation"
    signal = "activation_abs_max"
    gauges: tuple[Derived, ...] = (
        Derived("activation_growth_ratio", f"activation_abs_max over the least of its last {WINDOW} values.", "ratio"),
    )

    def __init__(self) -> None:
        self._columns = Columns(self.signal, "activation_nonfinite_total")
        self._ring = Ring(WINDOW)

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


class DriftFamily(RunFamily):
    """How much farther from zero the mean logsumexp of the output logits is than at first.

    A model that begins far out and comes in (inputs of a large scale) does not drift.
    """

    gauges: tuple[Derived, ...] = (
        Derived(
            "output_logit_drift",
            "How much farther from zero output_logit_logsumexp is than its first value was.",
            "nat",
            "run",
        ),
    )

    def __init__(self) -> None:
        super().__init__("output_logit", "output_logit_logsumexp")

    def _begin(self) -> None:
        self._first = math.nan

    def _observe(self, values: Array) -> dict[str, float] | None:
        now = self._one(self.signal, values)
        if not math.isfinite(now):
            return None
        if math.isnan(self._first):
            self._first = abs(now)
        return {self.gauges[0].name: max(abs(now) - self._first, 0.0), self.signal: now}


_FORWARD = ("activation", "attention", "output_logit")


class NonFiniteFamily:
    """Non-finite values of this record, by the place where they were counted; `nonfinite_new` leaves out a mask.

    Gradients of a step that the gradient scaler skipped are left out: there a non-finite gradient is routine.
    A forward value that is non-finite in the first record already, beside a finite loss, is a mask (-inf on the
    logits of actions that are not allowed, rows without a visible key) and not new.
    """

    name = "nonfinite"
    signal = "nonfinite"
    gauges: tuple[Derived, ...] = ()

    def __init__(self) -> None:
        self.keys: list[SeriesKey] = []
        self._columns: list[int] = []
        self._gradient = self._forward = self._loss = self._mask = np.zeros(0, dtype=bool)
        self._skipped: int | None = None
        self._begun = False

    @property
    def layers(self) -> list[str]:
        """One row per counter."""
        return [key.layer for key in self.keys]

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Family."""
        self.keys = list(dict.fromkeys([*self.keys, *(key for key in keys if key.signal.endswith("nonfinite_total"))]))
        place = {key: i for i, key in enumerate(keys)}
        self._columns = [place.get(key, -1) for key in self.keys]
        self._gradient = np.array([key.signal.startswith("gradient") for key in self.keys], dtype=bool)
        self._forward = np.array([key.signal.startswith(_FORWARD) for key in self.keys], dtype=bool)
        self._loss = np.array([key.signal.startswith("loss") for key in self.keys], dtype=bool)
        self._mask = np.append(self._mask, np.zeros(len(self.keys) - len(self._mask), dtype=bool))
        self._skipped = place.get(SeriesKey("skipped_steps_total"))

    def restart(self) -> None:
        """See Family."""
        self._begun = False
        self._mask[:] = False

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """See Family."""
        counts = np.append(values, np.nan)[self._columns]
        if self._skipped is not None and values[self._skipped] > 0:
            counts[self._gradient] = np.nan
        if np.isnan(counts).all():
            return None
        if not self._begun:
            self._begun = True
            if (counts[self._loss] == 0).any() and not (counts[~self._forward] > 0).any():
                self._mask = self._forward & (counts > 0)
        new = np.where(self._mask & (counts > 0), 0.0, counts)
        return {"nonfinite": counts, "nonfinite_new": new, "points": np.ones(len(counts))}


def families() -> tuple[Family, ...]:
    """Fresh state for one run."""
    return (
        NonFiniteFamily(),
        LossFamily(),
        GradientFamily(),
        AttentionFamily(),
        DriftFamily(),
        ActivationFamily(),
        *_of_layers(),
        ReplicaFamily(),
        *rank_spreads(),
        *scaler_families(),
    )


def _of_layers() -> tuple[Family, ...]:
    return (
        MedianFamily(
            "update",
            "update_to_weight_ratio",
            Derived("update_to_weight_median_ratio", "Median over layers of update_to_weight_ratio.", "ratio", "run"),
            Derived(
                "update_to_weight_to_peak_ratio",
                "update_to_weight_median_ratio over its largest value before.",
                "ratio",
                "run",
            ),
        ),
        WeightFamily(),
        FadeFamily(),
        MedianFamily(
            "token_similarity",
            "token_similarity",
            Derived("token_similarity_median", "Median over layers of token_similarity.", level="run"),
            rise=Derived(
                "token_similarity_rise", "token_similarity_median less that of the layers' first values.", level="run"
            ),
        ),
        PlainFamily("adam_step_rms"),
        MedianFamily(
            "adam_epsilon",
            "adam_epsilon_ratio",
            Derived("adam_epsilon_median_ratio", "Median over layers of adam_epsilon_ratio.", "ratio", "run"),
        ),
        PlainFamily("softmax_collapse_ratio"),
        PlainFamily("router_max_violation"),
        *(
            PlainFamily(signal, Derived(f"{signal}_rise", f"{signal} less its first value of the run."))
            for signal in ("dead_units_ratio", "saturated_units_ratio", "residual_growth", "attention_entropy")
        ),
        PlainFamily("router_dropped_ratio"),
        PlainFamily("beyond_radius_ratio"),
        MedianFamily(
            "geometry_drift",
            "geometry_drift",
            Derived("geometry_drift_median", "Median over layers of geometry_drift.", level="run"),
            jump=Derived(
                "geometry_drift_jump", "geometry_drift_median less what it was at the point before.", level="run"
            ),
        ),
    )


DERIVED: tuple[Derived, ...] = tuple(gauge for family in families() for gauge in family.gauges)
