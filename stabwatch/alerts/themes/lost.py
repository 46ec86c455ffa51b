"""Parts of the model that had a gradient, and have lost it in the middle of the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from stabwatch.alerts.blocks import Block, BlockGauges
from stabwatch.alerts.columns import LayerColumns
from stabwatch.alerts.features import DerivedSignal, Feature, PlainFeature, own_signals
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array, Bools, Ints
from stabwatch.alerts.themes.setup import PartFeature, part_thresholds
from stabwatch.runlog import SeriesKey


class _Calls:
    """Counts looks at the outputs of layers, or within them, while something lasts.

    A part that is called no more (the head of a task that is over) is not used by the loss, as is meant.
    """

    def __init__(self) -> None:
        self._columns = LayerColumns("activation_abs_max")
        self._number = np.empty(0)
        self._within: list[list[int]] = []

    def bind(self, keys: Sequence[SeriesKey], layers: Sequence[str]) -> None:
        """Find the columns in a new layout. layers: to be counted; they keep their order."""
        self._columns.bind(keys)
        self._number = np.append(self._number, np.zeros(len(layers) - len(self._number)))
        rows = {layer: i for i, layer in enumerate(layers)}
        self._within = [[] for _ in layers]
        for column, name in enumerate(self._columns.layers):
            for row in {rows[above] for above in _and_above(name) if above in rows}:
                self._within[row].append(column)

    def restart(self) -> None:
        """Begin again."""
        self._number[:] = 0

    def during(self, lasts: Bools, values: Array) -> Array:
        """How often each layer was called since it began, where it lasts; else 0."""
        self._number[~lasts] = 0
        if lasts.any():
            seen = ~np.isnan(self._columns.of("activation_abs_max", values))
            self._number += [bool(on and seen[mine].any()) for on, mine in zip(lasts, self._within, strict=True)]
        return self._number.copy()


def _and_above(name: str) -> Iterator[str]:
    """A module, and those that it is a part of."""
    while name:
        yield name
        name = name.rpartition(".")[0]


class LostFeature(PartFeature):
    """Layers that have lost their gradient, what share of all they are together, and whether they are still called."""

    def __init__(self) -> None:
        super().__init__("gradient_lost", "Share of all trained numbers that have lost their gradient.")
        self._calls = _Calls()
        calls = DerivedSignal(
            "called_without_gradient", "Looks at outputs of the layer, or within it, since it lost its gradient."
        )
        self.gauges = (*self.gauges, calls)

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Feature."""
        super().bind(keys)
        self._calls.bind(keys, self.layers)

    def restart(self) -> None:
        """See Feature."""
        super().restart()
        self._calls.restart()

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """See Feature."""
        numbers = super().update(step, values)
        if numbers is None:
            return None
        lost = numbers[self.signal]
        called = self._calls.during(lost > 0, values)
        return numbers | {"called_without_gradient": np.where(np.isnan(lost), np.nan, called)}

    measures = own_signals


class ZeroedFeature(PlainFeature):
    """Layers whose gradient has become exactly zero while others have one, and whether they are still called."""

    def __init__(self) -> None:
        super().__init__("layer_gradient_norm")
        self.name = "layer_zeroed"
        self._calls = _Calls()
        self._had, self._since = np.empty(0, dtype=bool), np.empty(0)
        self.gauges = (
            DerivedSignal(
                "gradient_zeroed_steps", "Steps for which the gradient of a layer that had one has been exactly zero."
            ),
            DerivedSignal(
                "called_with_zero_gradient", "Looks at outputs of the layer, or within it, since its gradient is zero."
            ),
        )

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Feature."""
        super().bind(keys)
        more = len(self.layers) - len(self._since)
        self._had = np.append(self._had, np.zeros(more, dtype=bool))
        self._since = np.append(self._since, np.full(more, np.nan))
        self._calls.bind(keys, self.layers)

    def restart(self) -> None:
        """See Feature."""
        super().restart()
        self._had[:], self._since[:] = False, np.nan
        self._calls.restart()

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """See Feature."""
        numbers = super().update(step, values)
        if numbers is None:
            return None
        norms = numbers[self.signal]
        known = ~np.isnan(norms) & (np.fmax.reduce(norms, initial=0.0) > 0)
        self._had |= known & (norms > 0)
        zero = known & (norms == 0) & self._had
        began = np.where(np.isnan(self._since), step, self._since)
        self._since = np.where(zero, began, np.where(known, np.nan, self._since))
        called = self._calls.during(~np.isnan(self._since), values)
        steps = np.nan_to_num(step - self._since)
        return numbers | {
            gauge.name: np.where(known, x, np.nan) for gauge, x in zip(self.gauges, (steps, called), strict=True)
        }

    measures = own_signals

    def observe_block(self, steps: Ints, values: Array) -> Block | None:  # type: ignore[override]
        """See `blocks`."""
        norms = self._columns.of(self.signal, values)
        if not np.isnan(self._since).all() or (norms == 0).any():
            return None
        self._had |= (norms > 0).any(axis=0)
        rows, found = super().observe_block(steps, values)
        none = np.where(np.isnan(norms), np.nan, 0.0)
        columns = {gauge.name: none for gauge in self.gauges}
        return rows, BlockGauges({self.signal: norms, "points": found.of("points")} | columns)


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (LostFeature(), ZeroedFeature())


RULES: tuple[Rule, ...] = (
    Rule(
        name="PartLostGradient",
        title="A part of the model has lost its gradient",
        family="gradient_lost_ratio",
        summary="A part of the model had a gradient and has none any more, though it is still called: it is trained no "
        "longer.",
        description="{gradient_lost_ratio:.0%} of the trainable numbers of {where} had gradients, and have had none "
        "for {gradient_lost_ratio_steps:.0f} steps and more, while it was called; together with other layers, "
        "{gradient_lost_together:.2g} of all.",
        thresholds=part_thresholds(
            "gradient_lost",
            "A small part of the model is trained no longer.",
            gradient_lost_ratio_steps=47.0,
            called_without_gradient=0.0,
        ),
        abnormal=(Condition("gradient_lost_ratio", above=0.0),),
        source="none in eight looks at 64 steps of its optimizer, in which others had one; a part that is frozen on "
        "purpose has requires_grad=False, and one that is not used is not called",
        remedy=(
            "What changed at this step? Look for `.detach()`, `torch.no_grad()`, `.data` or a numpy round trip "
            "between this part and the loss that begin at some step or epoch, or at a cache of features.",
            "If the part should be trained no longer, set requires_grad to False.",
        ),
        fact=True,
    ),
    Rule(
        name="PartGradientBecameZero",
        title="The gradient of a part of the model has become zero",
        family="layer_zeroed",
        summary="A part of the model had a gradient that is exactly zero now, though it is still called: it is trained "
        "no longer.",
        description="The gradient of {where} was not zero before. It has been exactly zero at each point for "
        "{gradient_zeroed_steps:.0f} steps, while the layer was called and others had gradients.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(
                    Condition("gradient_zeroed_steps", above=63.0),
                    Condition("called_with_zero_gradient", above=0.0),
                ),
                for_points=4,
            ),
        ),
        abnormal=(Condition("gradient_zeroed_steps", above=0.0),),
        source="exactly zero at each of four points and more, over 64 steps and more, as PartLostGradient waits; a "
        "part that is frozen on purpose has requires_grad=False, and one that is not used is not called",
        remedy=(
            "What changed at this step? Look for a factor or a mask that has become 0, a clamp or a saturated "
            "function that is always reached now, units that are all dead, or an index that leaves this part out.",
            "If the part should be trained no longer, set requires_grad to False.",
        ),
        fact=True,
    ),
)
