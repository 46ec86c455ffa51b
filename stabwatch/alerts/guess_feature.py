"""The cross-entropy beside that of a uniform guess, and whether another term of the loss is learned meanwhile."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

from stabwatch.alerts.columns import LayerColumns
from stabwatch.alerts.features import DerivedSignal, Duration, RunFeature, own_signals
from stabwatch.alerts.statistics import Array, median
from stabwatch.runlog import SeriesKey

WINDOW = 16
"""Points of which a cross-entropy is the median."""
RECENT = 64
"""Steps within which the points lie of which a loss is compared with a guess."""
NO_BETTER = 0.98
"""Of ln(classes): a cross-entropy above it is no better than a guess."""
FALLEN = 0.1
"""Share of its lowest level by which another term of the loss must fall to a new one, to be still learned."""
HEAVY = 0.05
"""Of ln(classes): what a term that falls by less adds to the loss is nothing beside the cross-entropy."""
SHORT = 8
"""Points whose median is the level of another term."""
LABELS = 8
"""Labels of a step from which on 200 steps are enough to learn from."""


class GuessFeature(RunFeature):
    """The cross-entropy of the last steps over that of a uniform guess, and for how many steps it was no lower.

    The median of the last 16 points, or of 8 where these are longer ago than 64 steps: a model that begins to learn
    late is seen. Steps are counted from the first record on, and again while the rest of the loss (boxes beside
    classes, an error beside a code) comes to new lows: then something is learned.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal("loss_to_uniform_ratio", "Median cross-entropy over ln(classes).", "ratio", "run"),
        DerivedSignal(
            "loss_uniform_steps",
            f"Steps for which the cross-entropy was that of a guess, or higher; with fewer than {LABELS} labels in a "
            "step as many times fewer.",
            "1",
            "run",
        ),
    )

    def __init__(self) -> None:
        super().__init__("loss_of_guess", "token_loss", "target_classes", "target_labels")
        self._loss = LayerColumns("loss")

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Feature."""
        super().bind(keys)
        self._loss.bind(keys)

    def _begin(self) -> None:
        self._past: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._rest: deque[float] = deque(maxlen=SHORT)
        self._lowest = math.inf
        self._guesses = Duration()
        self._labels = float(LABELS)

    def _learns_another(self, rest: float, unit: float) -> bool:
        """Does the rest of the loss come to a new low? unit: ln(classes)."""
        if not math.isfinite(rest):
            return False
        self._rest.append(rest)
        level = median(np.array(self._rest))
        if len(self._rest) < SHORT or level > self._lowest - max(FALLEN * self._lowest, HEAVY * unit):
            return False
        begun, self._lowest = math.isfinite(self._lowest), level
        return begun

    def _observe(self, values: Array) -> dict[str, float] | None:
        loss, classes, labels = (self._one(signal, values) for signal in self._columns.signals)
        self._labels = labels if labels > 0 else self._labels
        if not math.isfinite(loss + classes) or classes < 2:
            return None
        self._past.append((self._step, loss / math.log(classes)))
        while len(self._past) > WINDOW // 2 and self._step - self._past[0][0] > RECENT:
            self._past.popleft()
        now = median(np.array([ratio for _, ratio in self._past]))
        others = self._learns_another(self._loss.number("loss", values) - loss, math.log(classes))
        steps = self._guesses.at(self._step, now >= NO_BETTER and not others) * min(1.0, self._labels / LABELS)
        return {self.gauges[0].name: now, self.gauges[1].name: steps, "token_loss": loss}

    measures = own_signals
