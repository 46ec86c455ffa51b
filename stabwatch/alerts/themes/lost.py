"""Parts of the model that had a gradient, and have lost it in the middle of the run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stabwatch.alerts.columns import LayerColumns
from stabwatch.alerts.features import DerivedSignal, Feature, own_signals
from stabwatch.alerts.rule import Condition, Rule
from stabwatch.alerts.statistics import Array
from stabwatch.alerts.themes.setup import PartFeature, part_thresholds
from stabwatch.runlog import SeriesKey


class LostFeature(PartFeature):
    """Layers that have lost their gradient, what share of all they are together, and whether they are still called.

    A part that is called no more (the head of a task that is over) is not used by the loss, as is meant.
    """

    def __init__(self) -> None:
        super().__init__("gradient_lost", "Share of all trained numbers that have lost their gradient.")
        self._calls = LayerColumns("activation_abs_max")
        self._called = np.empty(0)
        calls = DerivedSignal(
            "called_without_gradient", "Looks at outputs of the layer, or within it, since it lost its gradient."
        )
        self.gauges = (*self.gauges, calls)

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Feature."""
        super().bind(keys)
        self._calls.bind(keys)
        self._called = np.append(self._called, np.zeros(len(self.layers) - len(self._called)))

    def restart(self) -> None:
        """See Feature."""
        super().restart()
        self._called[:] = 0

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """See Feature."""
        numbers = super().update(step, values)
        if numbers is None:
            return None
        lost = numbers[self.signal]
        seen = self._calls.of("activation_abs_max", values)
        named = [name for name, x in zip(self._calls.layers, seen, strict=True) if not np.isnan(x)]
        if named:
            self._called += [any(_within(name, layer) for name in named) for layer in self.layers]
        self._called = np.where(lost > 0, self._called, 0.0)
        return numbers | {"called_without_gradient": np.where(np.isnan(lost), np.nan, self._called)}

    measures = own_signals


def _within(name: str, layer: str) -> bool:
    """Is a module the layer, or a part of it?"""
    return name == layer or name.startswith(f"{layer}.")


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (LostFeature(),)


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
)
