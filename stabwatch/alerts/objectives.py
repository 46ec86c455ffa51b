"""Does the loss of one step say how good the model is? That of a policy, a value or a player of a game does not."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, overload

import numpy as np

from stabwatch.alerts.columns import LayerColumns
from stabwatch.alerts.roles import LOGGED, is_called
from stabwatch.alerts.statistics import Array, Bools, Ints, median
from stabwatch.runlog import SeriesKey

EQUAL = 0.05
"""Relative difference up to which the trained loss is the cross-entropy beside it."""
ACTS = 128
"""A model acts if it is called without gradients, in training mode, in one of so many records, and in two of all."""
SIGNS = 8
"""Changes of sign within `LAST` records: the loss scatters around zero, which is the end of no scale."""
LAST = 256
EPISODES, VARY, FEW = 4.0, 1.5, 6
"""Forwards of a backward pass. With so many times fewer at other times they are an episode, and not parts of a sum; so
are those of the first passes, from so many on, if half of the numbers differ."""
BEGIN = 64
"""Records at the beginning whose largest level is usual."""
SMOOTH = 16
ZERO = 1e-6
"""A first loss that is zero but for rounding."""
REWARDED = ("reward", "old_kl", "clip_fraction", "ratio_max", "advantage_max", "dead_groups")
"""Roles of numbers that are logged where a policy is trained."""
LOOKS, GROWN = 4, 1.5
"""Looks at the targets whose median is their size, and how many times larger than at first they have grown."""
DECADES = 8.0
"""Decades of growth that count as all progress lost; half of it is ten thousand times the usual loss."""


class Beside(NamedTuple):
    """What a step shows beside its loss, NaN where it is not known.

    rewarded: a reward is logged. norm: of the gradient before clipping. acted: calls without gradients.
    opposed: gradients went to an optimizer that has an objective of its own. compared: the loss that compares outputs
    with targets; size: the root mean square of these targets.
    """

    token_loss: float
    norm: float
    acted: float
    forwards: float
    passes: float
    rewarded: bool
    opposed: float = math.nan
    compared: float = math.nan
    size: float = math.nan


class MovingTargets:
    """Have the targets of the trained loss grown, as those do that a program makes from what a model says?

    Then their spread and the loss grow with them, and losses of different steps do not compare.
    """

    def __init__(self) -> None:
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=LOOKS)

    def observe(self, loss: float, compared: float, size: float) -> None:
        """A step; compared and size are NaN where they were not looked at."""
        if not math.isfinite(size) or not abs(loss - compared) <= EQUAL * abs(compared):
            return
        self._last.append(size)
        if len(self._first) < LOOKS:
            self._first.append(size)

    @property
    def grown(self) -> bool:
        """Are they larger than at first?"""
        return len(self._last) == LOOKS and median(np.array(self._last)) >= GROWN * median(np.array(self._first))


class Objective:
    """Whether losses of different steps can be compared, from what a step shows beside its loss.

    They cannot where the model itself makes its data (it is called without gradients in training mode, or its forwards
    are steps of an episode), where it is trained against another one, where a reward is logged, where the sign of the
    loss changes again and again, where it begins at zero (a policy, or a distance to what the model was, which can
    only grow), and where its targets grow. They can where the loss is the cross-entropy. ever: it was not comparable
    at some time of the run.
    """

    def __init__(self) -> None:
        self.ever = False
        self._records = self._acted = self._opposed = self._negative = 0
        self._likelihood = self._from_zero = self._lengths = False
        self._calls: list[float] = []
        self._fewest, self._most = math.inf, 0.0
        self._changes: deque[int] = deque()
        self._before = 0.0
        self._sizes: deque[float] = deque(maxlen=SMOOTH)
        self._norms: deque[float] = deque(maxlen=SMOOTH)
        self._usual = self._usual_norm = 0.0
        self._targets = MovingTargets()

    def observe(self, loss: float, beside: Beside) -> bool:
        """A finite loss: is it comparable with those before?"""
        self._records += 1
        self._from_zero = abs(loss) <= ZERO if self._records == 1 else self._from_zero
        self._acted += beside.acted > 0
        self._opposed += beside.opposed > 0
        self._negative += loss < 0 and self._records <= SMOOTH
        if beside.passes > 0 and beside.forwards > 0:
            self._calls.append(beside.forwards / beside.passes)
        if not math.isnan(beside.token_loss):
            self._likelihood = abs(loss - beside.token_loss) <= EQUAL * abs(beside.token_loss)
        if loss * self._before < 0:
            self._changes.append(self._records)
        while self._changes and self._changes[0] <= self._records - LAST:
            self._changes.popleft()
        self._before = loss or self._before
        self._note_size(abs(loss), beside.norm)
        self._targets.observe(loss, beside.compared, beside.size)
        moves = not self._likelihood and (
            beside.rewarded or self._from_zero or self._acts() or self._by_episodes() or len(self._changes) >= SIGNS
            or self._targets.grown
        )  # fmt: skip
        self.ever = self.ever or moves
        return not moves

    @property
    def is_score(self) -> bool:
        """Was the loss negative from the beginning? That of a policy comes back to zero when all is learned."""
        return self._negative > SMOOTH // 2

    def growth(self) -> float:
        """Growth of the loss over its usual size, or over 1 where that is smaller, as a share of eight decades.

        Not more than twice the decades by which the gradient has grown, as far as that is known.
        """
        if not self._usual or len(self._sizes) < SMOOTH:
            return math.nan
        decades = math.log10(max(_middle(self._sizes), 1e-30) / max(self._usual, 1.0))
        if self._usual_norm > 0 and self._norms:
            decades = min(decades, 2 * math.log10(max(_middle(self._norms), 1e-30) / self._usual_norm))
        return max(decades, 0.0) / DECADES

    def _acts(self) -> bool:
        return makes_its_data(self._acted, self._records) or makes_its_data(self._opposed, self._records)

    def _by_episodes(self) -> bool:
        """Are forwards of a backward pass as many as an episode is long? Also where that changes in the run."""
        if not self._most and len(self._calls) == FEW:
            self._lengths = min(self._calls) >= EPISODES and 2 * len(set(self._calls)) >= FEW
        if len(self._calls) == SMOOTH:
            few, many = np.quantile(np.array(self._calls), (0.25, 0.75))
            self._fewest, self._most = min(self._fewest, float(few)), max(self._most, float(many))
            self._calls.clear()
        return self._lengths or self._most >= max(EPISODES, VARY * self._fewest)

    def _note_size(self, size: float, norm: float) -> None:
        self._sizes.append(size)
        if math.isfinite(norm):
            self._norms.append(norm)
        if self._records <= BEGIN and len(self._sizes) == SMOOTH:
            self._usual = max(self._usual, _middle(self._sizes))
            self._usual_norm = max(self._usual_norm, _middle(self._norms)) if self._norms else 0.0


@overload
def makes_its_data(acted: int, records: int) -> bool: ...


@overload
def makes_its_data(acted: Ints, records: Ints) -> Bools: ...


def makes_its_data(acted: Any, records: Any) -> Any:
    """Does a model make its own data, which was called without gradients in so many records, out of so many?"""
    return (acted >= 2) & (acted * ACTS >= records)


class OwnData:
    """Does a model make its own data, or play against another one, as far as its records show?"""

    def __init__(self) -> None:
        self._records = self._played = 0

    def record(self, acted: float, opposed: float = math.nan) -> None:
        """One more record: calls without gradients, and steps of opponents; NaN where they are not known."""
        self._records += 1
        self._played += acted > 0 or opposed > 0

    def records(self, acted: Array, opposed: Array) -> Bools:
        """The same of several records, (n,) each; returns what was known after each of them."""
        records = self._records + np.arange(1, len(acted) + 1)
        played = self._played + np.cumsum((acted > 0) | (opposed > 0))
        if len(acted):
            self._records, self._played = int(records[-1]), int(played[-1])
        return makes_its_data(played, records)

    @property
    def made(self) -> bool:
        """By the records so far."""
        return makes_its_data(self._played, self._records)


def is_rewarded(keys: Iterable[SeriesKey]) -> bool:
    """Is a number logged that is logged where a policy is trained?"""
    return any(k.signal == LOGGED and any(is_called(role, k.layer) for role in REWARDED) for k in keys)


class ObjectiveColumns(LayerColumns):
    """The columns of what stands beside a loss."""

    def __init__(self) -> None:
        super().__init__(
            "token_loss", "calls_without_gradient", "forward_passes", "backward_passes", "gradient_norm_before_clip",
            "gradient_norm", "opponent_steps", "compared_loss", "target_rms",
        )  # fmt: skip
        self._rewarded = False

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See LayerColumns. A number that is logged once is a column from then on."""
        super().bind(keys)
        self._rewarded = is_rewarded(keys)

    def beside(self, values: Array) -> list[Beside]:
        """What each record of values (n, series) shows."""
        tokens, acted, forwards, passes, before, after, opposed, compared, size = (
            self.of_run(signal, values) for signal in self.signals
        )
        norm = np.where(np.isnan(before), after, before)
        rows = np.stack((tokens, norm, acted, forwards, passes, opposed, compared, size), axis=1).tolist()
        return [Beside(a, b, c, d, e, self._rewarded, *more) for a, b, c, d, e, *more in rows]


def _middle(values: deque[float]) -> float:
    return median(np.array(values))
