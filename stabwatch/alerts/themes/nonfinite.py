"""Non-finite values: the counters as a derived signal, and their rule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stabwatch.alerts.blocks import Block, BlockGauges
from stabwatch.alerts.features import DerivedSignal, Feature
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array, Bools, Ints
from stabwatch.runlog import SeriesKey

_FORWARD = ("activation", "loop", "attention", "output_logit")
_GRADIENTS = ("gradient", "activation_gradient")


class NonFiniteFeature:
    """Non-finite values of one record by counter; `nonfinite_new` leaves out masks.

    Gradients of a step that the gradient scaler skipped are left out: there they are routine. A forward value that is
    non-finite in the first record, beside a finite loss, counts as a mask: -inf on the logits of invalid actions, or
    rows without a visible key. So does a gradient of activations beside finite gradients of the parameters.
    """

    name = "nonfinite"
    signal = "nonfinite"
    gauges: tuple[DerivedSignal, ...] = ()

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
        """See Feature."""
        counters = [key for key in keys if key.signal.endswith("nonfinite_total")]
        self.keys = list(dict.fromkeys([*self.keys, *in_order_of_origin(counters)]))
        place = {key: i for i, key in enumerate(keys)}
        self._columns = [place.get(key, -1) for key in self.keys]
        self._skipped = place.get(SeriesKey("skipped_steps_total"))
        self._classify()

    def _classify(self) -> None:
        self._gradient = np.array([key.signal.startswith(_GRADIENTS) for key in self.keys], dtype=bool)
        self._forward = np.array([key.signal.startswith(_FORWARD) for key in self.keys], dtype=bool)
        self._loss = np.array([key.signal.startswith("loss") for key in self.keys], dtype=bool)
        self._mask = np.append(self._mask, np.zeros(len(self.keys) - len(self._mask), dtype=bool))

    def note(self, key: SeriesKey) -> dict[str, Array]:
        """One value that is not finite was seen in a step of its own: the gauges of that point."""
        if key not in self.keys:
            self.keys.append(key)
            self._columns.append(-1)
            self._classify()
        counts = np.where([known == key for known in self.keys], 1.0, np.nan)
        return {"nonfinite": counts, "nonfinite_new": counts, "points": np.ones(len(counts))}

    def restart(self) -> None:
        """See Feature."""
        self._begun = False
        self._mask[:] = False

    def update(self, step: int, values: Array) -> dict[str, Array] | None:
        """See Feature."""
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

    def measures(self, values: Array) -> Bools:
        """See `blocks`."""
        present = np.array([column for column in self._columns if column >= 0], dtype=np.int64)
        return np.asarray(~np.isnan(np.take(values, present, axis=1)).all(axis=1))

    def observe_block(self, steps: Ints, values: Array) -> Block | None:
        """See `blocks`."""
        if not self._begun:
            return None
        counts = np.full((len(values), len(self._columns)), np.nan)
        present = np.flatnonzero(np.array(self._columns) >= 0)
        counts[:, present] = np.take(values, np.array(self._columns)[present], axis=1)
        if self._skipped is not None:
            skipped = np.flatnonzero(values[:, self._skipped] > 0)
            counts[np.ix_(skipped, np.flatnonzero(self._gradient))] = np.nan
        rows = np.flatnonzero(~np.isnan(counts).all(axis=1))
        counts = counts[rows]
        new = np.where(self._mask & (counts > 0), 0.0, counts)
        return rows, BlockGauges({"nonfinite": counts, "nonfinite_new": new, "points": np.ones(counts.shape)})


def in_order_of_origin(counters: Sequence[SeriesKey]) -> list[SeriesKey]:
    """Counters in forward order, but those of activation gradients the other way round: the backward begins behind."""
    back = [key for key in counters if key.signal.startswith("activation_gradient")]
    return [back.pop() if key.signal.startswith("activation_gradient") else key for key in counters]


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (NonFiniteFeature(),)


RULES: tuple[Rule, ...] = (
    Rule(
        name="NonFinite",
        title="Non-finite values",
        family="nonfinite",
        summary="NaN or infinite values appeared in training.",
        description="{nonfinite:.0f} non-finite values in {signal} of {where} at step {step}.",
        thresholds=(
            Threshold(severity="critical", when=(Condition("nonfinite_new", above=0),)),
            Threshold(
                severity="info",
                when=(Condition("nonfinite", above=0),),
                summary="Non-finite values since the first record, beside a finite loss: most likely a mask.",
            ),
        ),
        abnormal=(Condition("nonfinite", above=0),),
        resolve_after=20,
        source="any; info if the first record has them beside a finite loss, as masks of -inf do",
        remedy=(
            "Stop, and resume from the last checkpoint before the onset.",
            "Check the batch of that step, and the first layer with such values: was its input finite?",
            "In float16: use a gradient scaler, which skips such steps, or train in bfloat16.",
        ),
    ),
)
