"""Mixtures of experts: router collapse and dropped tokens. Codebooks whose rows are not used."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stabwatch.alerts.columns import LayerColumns
from stabwatch.alerts.features import DerivedSignal, Feature, LastingFeature, PlainFeature, own_signals
from stabwatch.alerts.references import CALIBRATED, CODEBOOK, SWITCH
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array
from stabwatch.runlog import SeriesKey


class CodesFeature(PlainFeature):
    """The share of a codebook that was never used, how often its rows could have been, and since when it is that."""

    def __init__(self) -> None:
        super().__init__("code_unused_ratio")
        self._lookups = LayerColumns("code_lookups_per_row")
        self._least, self._since = np.empty(0), np.empty(0)
        self.gauges = (
            DerivedSignal("code_unused_lookups", "Lookups per row of a codebook with rows that were never used."),
            DerivedSignal("code_unused_steps", "Steps since a row of a codebook was used for the first time."),
        )

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Feature."""
        super().bind(keys)
        self._lookups.bind(keys)
        more = np.full(len(self.layers) - len(self._least), np.nan)
        self._least, self._since = np.append(self._least, more), np.append(self._since, more)

    def restart(self) -> None:
        """See Feature."""
        super().restart()
        self._least[:], self._since[:] = np.nan, np.nan

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """See Feature."""
        numbers = super().update(step, values)
        if numbers is None:
            return None
        unused = numbers[self.signal]
        fewer = (unused < self._least) | (np.isnan(self._least) & ~np.isnan(unused))
        self._least, self._since = np.where(fewer, unused, self._least), np.where(fewer, step, self._since)
        looked = self._lookups.of("code_lookups_per_row", values)
        found = (np.where(np.isnan(unused), np.nan, x) for x in (looked, step - self._since))
        return numbers | dict(zip((g.name for g in self.gauges), found, strict=True))

    measures = own_signals


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (LastingFeature("router_max_violation", above=2.5), PlainFeature("router_dropped_ratio"), CodesFeature())


RULES: tuple[Rule, ...] = (
    Rule(
        name="RouterCollapse",
        title="Router collapse",
        family="router_max_violation",
        summary="A router sends nearly all tokens to one expert, or to a few.",
        description="The load of the busiest expert of {where} exceeds the mean load by a factor of "
        "{router_max_violation:.3g}.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(
                    Condition("router_max_violation", above=2.5),
                    Condition("router_max_violation_steps", above=59.0),
                ),
                for_points=2,
            ),
        ),
        abnormal=(Condition("router_max_violation", above=2.0),),
        source="3: all tokens go to one of four experts, or to the same two of eight; for 60 steps: where a short run "
        f"measures steps 4, 8, 16, 32, 64 and 128, the last two confirm it; {CALIBRATED}",
        remedy=(
            "Raise the weight of the load-balancing loss, or add a bias per expert. Lower the router's learning rate.",
            "Resume from a checkpoint before the onset: experts without tokens were not trained.",
        ),
        references=(SWITCH,),
    ),
    Rule(
        name="ExpertTokensDropped",
        title="Dropped expert tokens",
        family="router_dropped_ratio",
        summary="Experts are over capacity, and their layer drops tokens.",
        description="{router_dropped_ratio:.0%} of the assignments of {where} exceed the experts' capacity.",
        thresholds=(
            Threshold(severity="warning", when=(Condition("router_dropped_ratio", above=0.3),), for_points=64),
        ),
        abnormal=(Condition("router_dropped_ratio", above=0.2),),
        source=f"{SWITCH}: below 1% when balanced; 0.3 for 64 points, because routers start unbalanced",
        remedy=(
            "Raise the weight of the load-balancing loss. Until it works, use a larger capacity factor.",
            "If RouterCollapse fires too, resume from a checkpoint before the onset.",
        ),
        references=(SWITCH,),
    ),
    Rule(
        name="CodebookCollapse",
        title="Codebook collapse",
        family="code_unused_ratio",
        summary="Many rows of a codebook are never used: they are never nearest, and so never trained.",
        description="{code_unused_ratio:.0%} of the rows of {where} were never looked up, in {code_unused_lookups:.3g} "
        "lookups for each row, and none was used for the first time in the last {code_unused_steps:.0f} steps.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(
                    Condition("code_unused_ratio", above=0.25),
                    Condition("code_unused_lookups", above=16.0),
                    Condition("code_unused_steps", above=99.0),
                ),
            ),
        ),
        abnormal=(Condition("code_unused_ratio", above=0.25),),
        source="a quarter; of rows that are used equally often, one in ten million is missed in 16 lookups a row; a "
        "codebook that begins with few rows uses more of them within 100 steps",
        remedy=(
            "Begin with codes from the encoder's outputs (k-means on a batch), or normalise both.",
            "Replace rows that were not used for some hundred steps by outputs of the encoder; use a moving average.",
            "Raise the weight of the codebook loss, or lower the number of rows.",
        ),
        references=(CODEBOOK,),
        fact=True,
    ),
)
