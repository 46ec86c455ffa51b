"""Top singular values and sub-layer gains of matching layers across widths.

Under AdamW the largest singular value of a hidden matrix settles near sqrt(rate / decay) times a power of the width.
If the weight decay is scaled too (as sqrt(width), at a rate of 1 / width), it stays constant, and so does the
gain of the sub-layer. So singular values and gains that match between widths show that the hyperparameters transfer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from stabwatch.analysis.compare.curve_set import CurveSet

OF_EXPERTS = ("expert_combine_rms", "expert_coherence", "router_logit_rms")
MATCHED = 0.1
"""Values within 10 % of each other match."""


@dataclass(frozen=True)
class Matched:
    """One layer in all runs: its final value in each, and k of value ~ width^k (NaN if widths are equal)."""

    layer: str
    values: tuple[float, ...]
    exponent: float

    @property
    def spread(self) -> float:
        """Largest over smallest value."""
        return max(self.values) / min(self.values)


@dataclass(frozen=True)
class Widths:
    """widths: of the runs, relative to the first. singular_values: of weight matrices. gains: output RMS of sub-layers
    whose input has RMS 1 in a pre-norm network. experts: of mixtures, by signal: what should not change with the width.
    """

    widths: tuple[float, ...]
    singular_values: tuple[Matched, ...]
    gains: tuple[Matched, ...]
    experts: dict[str, tuple[Matched, ...]]

    @staticmethod
    def summary(rows: Sequence[Matched]) -> tuple[float, float, float]:
        """Median exponent, median spread, and share of layers whose values match; NaN without layers."""
        if not rows:
            return math.nan, math.nan, math.nan
        spreads = [row.spread for row in rows]
        share = sum(s <= 1 + MATCHED for s in spreads) / len(rows)
        return median(row.exponent for row in rows), median(spreads), share


def widths(subjects: Sequence[CurveSet]) -> Widths | None:
    """Compare the runs; None if they have no common measured layer."""
    relative = _relative(subjects)
    values = tuple(_matched(subjects, "singular_value_max", relative, lambda layer: True))
    branches = set.intersection(*(_branches(s) for s in subjects))
    gains = tuple(_matched(subjects, "output_rms", relative, lambda layer: layer in branches))
    experts = {signal: tuple(_matched(subjects, signal, relative, lambda layer: True)) for signal in OF_EXPERTS}
    return Widths(relative, values, gains, {k: v for k, v in experts.items() if v}) if values or gains else None


def _relative(subjects: Sequence[CurveSet]) -> tuple[float, ...]:
    """Relative widths from the parameter counts of sub-layers, which grow with the square of the width."""
    elements = [s.elements() for s in subjects]
    shared = set.intersection(*(_branches(s) & set(e) for s, e in zip(subjects, elements, strict=True)))
    if shared:
        return tuple(math.sqrt(median(e[layer] / elements[0][layer] for layer in shared)) for e in elements)
    return tuple(math.sqrt(s.parameters / subjects[0].parameters) for s in subjects)


def _branches(subject: CurveSet) -> set[str]:
    """The watched modules with the last projection of a residual branch."""
    shown = set(subject.layers("output_rms")) - subject.sites("residual")
    return {top for site in subject.sites("writer") for top in (_nearest(site, shown),) if top}


def _nearest(site: str, shown: set[str]) -> str:
    while site and site not in shown:
        site = site.rpartition(".")[0]
    return site


def _matched(
    subjects: Sequence[CurveSet], signal: str, relative: tuple[float, ...], wanted: Callable[[str], bool]
) -> Iterator[Matched]:
    shared = set.intersection(*(set(s.layers(signal)) for s in subjects))
    for layer in (x for x in subjects[0].layers(signal) if x in shared and wanted(x)):
        values = tuple(s.end(signal, layer) for s in subjects)
        if all(math.isfinite(v) and v > 0 for v in values):
            yield Matched(layer, values, _exponent(relative, values))


def _exponent(relative: tuple[float, ...], values: tuple[float, ...]) -> float:
    x, y = np.log(relative), np.log(values)
    if not np.isfinite(x).all() or np.ptp(x) < math.log(1.05):
        return math.nan
    return float(np.polyfit(x, y, 1)[0])
