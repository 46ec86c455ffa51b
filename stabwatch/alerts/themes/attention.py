"""Attention-logit growth and attention-entropy collapse."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stabwatch.alerts.blocks import Block, BlockGauges, OnDemand
from stabwatch.alerts.columns import LayerColumns, RollingWindow
from stabwatch.alerts.features import DerivedSignal, Feature, own_signals, rising
from stabwatch.alerts.references import CALIBRATED, ENTROPY, MUONCLIP, PROXIES, VIT22B
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array, Ints, slope
from stabwatch.runlog import SeriesKey

ATTENTION_LIMIT = 100.0
"""QK-clip's tau: MuonClip clips attention logits above it."""
TREND = 32
"""Points of a trend."""
PRESENT, FEWEST = 64, 4
"""Steps within which its points lie, unless that are fewer than four: older ones say nothing of the growth now."""


class AttentionFeature:
    """The best known lower bound of each layer's largest attention logit, its growth, and the steps to the limit.

    bound: the exact value where it was measured, else the lower bound from the logsumexp.
    growth: least-squares slope of ln(bound) per step over the last 32 points, as far as they are of the last 64 steps.
    steps to limit: steps until the bound reaches 100 at that growth.
    rise: bound over its first value. It separates a model that started with large logits (fine-tuning) from one whose
        logits grow. Bounds below 1 count as 1.
    """

    name = "attention_logit"
    signal = "attention_logit_lower"
    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "attention_logit_bound",
            "Best lower bound of the largest attention logit: its exact value, or the bound from the logsumexp.",
        ),
        DerivedSignal(
            "attention_logit_growth",
            f"Slope of ln(attention_logit_bound) per step over its last {TREND} points, or those of {PRESENT} steps.",
        ),
        DerivedSignal(
            "attention_logit_steps_to_limit",
            f"Steps until attention_logit_bound reaches {ATTENTION_LIMIT:g} at its present growth.",
        ),
        DerivedSignal("attention_logit_rise_ratio", "attention_logit_bound over its first value of the run.", "ratio"),
    )

    def __init__(self) -> None:
        self._columns = LayerColumns("attention_logit_lower", "attention_logit_max")
        self._ring = RollingWindow(TREND)
        self._first = np.empty(0)

    @property
    def layers(self) -> list[str]:
        """Layers in forward order."""
        return self._columns.layers

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Feature."""
        self._columns.bind(keys)
        self._ring.grow(len(self.layers))
        self._first = np.append(self._first, np.full(len(self.layers) - len(self._first), np.nan))

    def restart(self) -> None:
        """See Feature."""
        self._ring.clear()
        self._first[:] = np.nan

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """See Feature."""
        lower, exact = (self._columns.of(signal, values) for signal in self._columns.signals)
        bound = np.fmax(lower, exact)
        bound[np.isneginf(bound)] = np.nan  # no finite row: the value is unknown, and unknown is not normal
        if np.isnan(bound).all():
            return None
        sized = np.maximum(bound, 1.0)
        rows = np.flatnonzero(np.isfinite(bound))
        self._ring.push(rows, step, np.log(sized[rows]))
        self._first[rows] = np.where(np.isnan(self._first[rows]), sized[rows], self._first[rows])
        growth = np.full(len(bound), np.nan)
        growth[rows] = _present_slope(self._ring.steps[rows], self._ring.values[rows])
        with np.errstate(invalid="ignore", divide="ignore"):
            steps_left = np.log(ATTENTION_LIMIT / sized) / growth
        steps_left = np.where(bound >= ATTENTION_LIMIT, 0.0, np.where(growth > 0, steps_left, np.inf))
        steps_left[np.isnan(bound)] = np.nan
        numbers = (bound, growth, steps_left, sized / np.where(np.isnan(self._first), 1.0, self._first))
        return {gauge.name: column for gauge, column in zip(self.gauges, numbers, strict=True)} | {
            "points": self._ring.count.astype(np.float64)
        }

    measures = own_signals

    def observe_block(self, steps: Ints, values: Array) -> Block:
        """See `blocks`. The slope is computed where it is asked for."""
        bound = np.fmax(*(self._columns.of(signal, values) for signal in self._columns.signals))
        bound[np.isneginf(bound)] = np.nan
        rows = np.flatnonzero(~np.isnan(bound).all(axis=1))
        bound = bound[rows]
        if not len(rows):
            return rows, BlockGauges({"points": bound})
        sized, finite = np.maximum(bound, 1.0), np.isfinite(bound)
        past = self._ring.extend(steps[rows], np.log(sized), finite)
        firsts = sized[finite.argmax(axis=0), np.arange(bound.shape[1])]
        self._first = np.where(np.isnan(self._first) & finite.any(axis=0), firsts, self._first)

        def growth(records: Ints, layers: Ints) -> Array:
            return np.where(finite[records, layers], _present_slope(*past.at(records, layers)), np.nan)

        def steps_left(records: Ints, layers: Ints) -> Array:
            here, out = bound[records, layers], np.zeros(len(records))
            below = np.flatnonzero(~(here >= ATTENTION_LIMIT))
            rate = growth(records[below], layers[below])
            with np.errstate(invalid="ignore", divide="ignore"):
                out[below] = np.where(rate > 0, np.log(ATTENTION_LIMIT / np.maximum(here[below], 1.0)) / rate, np.inf)
            return np.where(np.isnan(here), np.nan, out)

        with np.errstate(invalid="ignore"):
            rise = sized / np.where(np.isnan(self._first), 1.0, self._first)
        numbers = (bound, OnDemand(growth, finite), OnDemand(steps_left, ~np.isnan(bound)), rise)
        columns: dict[str, Array | OnDemand] = dict(zip((g.name for g in self.gauges), numbers, strict=True))
        return rows, BlockGauges(columns | {"points": past.number.astype(np.float64)})


def _present_slope(steps: Array, values: Array) -> Array:
    """The slope of each row over its points of the last `PRESENT` steps, or its last `FEWEST` ones."""
    seen = np.where(np.isnan(values), -np.inf, steps)
    newest = np.sort(seen, axis=1)[:, [-FEWEST, -1]]
    oldest = np.minimum(newest[:, :1], newest[:, 1:] - PRESENT)
    return slope(steps, np.where(seen >= oldest, values, np.nan))


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (AttentionFeature(), rising("attention_entropy"))


RULES: tuple[Rule, ...] = (
    Rule(
        name="AttentionLogitGrowth",
        title="Attention-logit growth",
        family="attention_logit",
        summary="Attention logits have grown beyond a safe size.",
        description="The largest attention logit of {where} is at least {attention_logit_bound:.4g} and {growth} "
        "(limit 100).",
        thresholds=(
            Threshold(
                severity="critical",
                when=(
                    Condition("attention_logit_bound", above=100.0),
                    Condition("attention_logit_rise_ratio", above=1.5),
                ),
                for_points=3,
            ),
            Threshold(
                severity="warning",
                when=(
                    Condition("attention_logit_bound", above=40.0),
                    Condition("attention_logit_steps_to_limit", below=200.0),
                    Condition("attention_logit_rise_ratio", above=1.5),
                ),
                for_points=3,
                summary="Attention logits grow towards a size that is not safe.",
            ),
            Threshold(
                severity="info",
                when=(Condition("attention_logit_bound", above=100.0),),
                for_points=3,
                summary="Attention logits are large, and were large in the first record.",
            ),
        ),
        abnormal=(Condition("attention_logit_bound", above=30.0),),
        source=f"100: QK-clip's tau ({MUONCLIP}); healthy small models stay below 35 (docs/calibration.md); "
        "1.5 times the first value, because a pretrained model may start with logits above 100",
        remedy=(
            "Lower the learning rate, or lengthen its warm-up, before the loss rises.",
            "Long term: normalise queries and keys (QK-norm), or clip their weights (QK-clip at 100).",
        ),
        references=(VIT22B, PROXIES, MUONCLIP),
    ),
    Rule(
        name="AttentionEntropyCollapse",
        title="Attention-entropy collapse",
        family="attention_entropy",
        summary="The attention entropy has collapsed: nearly all weight is on one token.",
        description="The mean entropy of the attention of {where} is {attention_entropy:.2g} nat, "
        "a change of {attention_entropy_rise:.2g} nat since the start.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("attention_entropy", below=0.05), Condition("attention_entropy_rise", below=-1.0)),
                for_points=8,
            ),
        ),
        abnormal=(Condition("attention_entropy", below=0.2), Condition("attention_entropy_rise", below=-0.5)),
        source=f"0.05 nat: 99% of the weight is on one token, in all heads of the layer ({ENTROPY}); {CALIBRATED}",
        remedy=(
            "Lower the learning rate. Check the attention logits of this layer.",
            "Long term: QK-norm, or sigma-reparametrisation of the weights; a longer warm-up.",
        ),
        references=(ENTROPY,),
    ),
)
