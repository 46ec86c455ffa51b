"""Attention logits that grow, and attention entropy that collapses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stabwatch.alerts.features import DerivedSignal, Feature, LayerColumns, RollingWindow, rising
from stabwatch.alerts.references import CALIBRATED, ENTROPY, MUONCLIP, PROXIES, VIT22B
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array, slope
from stabwatch.runlog import SeriesKey

ATTENTION_LIMIT = 100.0
"""QK-clip's tau: the largest attention logit that MuonClip lets stand."""
TREND = 32


class AttentionFeature:
    """The best known lower bound of each layer's largest attention logit, its growth, and the steps left.

    bound: the exact value where it was measured, else the lower end of the bracket. growth: slope of ln(bound)
    per step by least squares over the last 32 points. steps to limit: at that growth, until 100. rise: bound over
    its first value, so that a model that came with large logits (a fine-tuned one) is told from one that grows them.
    Bounds below 1 count as 1.
    """

    name = "attention_logit"
    signal = "attention_logit_lower"
    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "attention_logit_bound", "Largest attention logit that is certain: exact, or the bracket's lower end."
        ),
        DerivedSignal(
            "attention_logit_growth", f"Slope of ln(attention_logit_bound) per step over its last {TREND} points."
        ),
        DerivedSignal(
            "attention_logit_steps_to_limit",
            f"Steps until the bound reaches {ATTENTION_LIMIT:g} at its present growth.",
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


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (AttentionFeature(), rising("attention_entropy"))


RULES: tuple[Rule, ...] = (
    Rule(
        name="AttentionLogitGrowth",
        title="Attention-logit growth",
        family="attention_logit",
        summary="Attention logits grow past a safe size.",
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
            ),
            Threshold(
                severity="info",
                when=(Condition("attention_logit_bound", above=100.0),),
                for_points=3,
                summary="Attention logits are large, and were so in the first record.",
            ),
        ),
        abnormal=(Condition("attention_logit_bound", above=30.0),),
        source=f"100: QK-clip's tau ({MUONCLIP}); healthy small models stay under 35 (docs/calibration.md); "
        "1.5 times the first value, as models to be fine-tuned may come with logits beyond 100",
        remedy=(
            "Lower the learning rate, or lengthen its warm-up, before the loss moves.",
            "For good: normalise queries and keys (QK-norm), or clip them (QK-clip at 100).",
        ),
        references=(VIT22B, PROXIES, MUONCLIP),
    ),
    Rule(
        name="AttentionEntropyCollapse",
        title="Attention-entropy collapse",
        family="attention_entropy",
        summary="Attention looks at one token only: its entropy has collapsed.",
        description="The mean entropy of the attention of {where} is {attention_entropy:.2g} nat, "
        "{attention_entropy_rise:.2g} against its first value.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("attention_entropy", below=0.05), Condition("attention_entropy_rise", below=-1.0)),
                for_points=8,
            ),
        ),
        abnormal=(Condition("attention_entropy", below=0.2), Condition("attention_entropy_rise", below=-0.5)),
        source=f"0.05 nat is 99% of the weight on one token, over all heads of the layer ({ENTROPY}); {CALIBRATED}",
        remedy=(
            "Lower the learning rate; look at the attention logits of the layer named here.",
            "For good: QK-norm, or sigma-reparametrisation of the weights; a longer warm-up.",
        ),
        references=(ENTROPY,),
    ),
)
