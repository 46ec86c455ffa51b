"""Features of what a training loop logs, read by role: smoothed curves, and how much of a gain is left."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Sequence
from itertools import islice
from math import fsum
from typing import Any

import numpy as np

from stabwatch.alerts.features import RunFeature, own_signals
from stabwatch.alerts.roles import RoleColumns, spelled
from stabwatch.alerts.statistics import Array, Bools, median, robust_spread
from stabwatch.runlog import SeriesKey

SMOOTH = 8
"""Points of the median that smooths a curve."""
WIDE, MANY = 16, 128
"""Points of the mean that smooths a quality, once there are so many."""
COARSE = 4
"""Different values up to which a quality counts events, and a middle of its points says nothing."""
FIRST = 4
"""Points whose median is the first level, and the last one of a curve with few points."""
KEPT = 512
"""Points of a curve that are kept; then every other one is dropped."""
MEAN_CHANGE, LARGEST_CHANGE = 1.13, 4.0
"""Mean and largest difference of successive points, of a hundred normal ones, in their standard deviation."""
RESTS = 48
"""Smoothed points within which a quality that has fallen rests."""
FLOOR = 0.1
"""Of its first level: a quality that comes so far below zero has no floor there."""
HALF = 0.5
"""Of a fall: a gain of so much before it is one, and no chance."""
EVIDENCE = (
    "reward", "old_kl", "clip_fraction", "ratio_max", "effective_samples", "advantage_max", "dead_groups",
    "rollout_logp", "rollout_kl",
)  # fmt: skip
"""What is logged where a policy is trained: a language model has an entropy too, and an autoencoder a divergence."""
_OF_POLICY = re.compile(r"(?:^|[/_ ])(?:policy|actor|ppo|grpo|rollout|objective|rlhf)(?:[/_ ]|$)")
"""Words in the name of an entropy or a divergence that say whose it is."""


class Curve:
    """A curve, smoothed by the median of the last points, in bounded memory: early points are thinned."""

    def __init__(self) -> None:
        self.points: list[float] = []
        self._stride = self._skipped = 1
        self.last: deque[float] = deque(maxlen=SMOOTH)

    def push(self, x: float) -> None:
        """One more point."""
        self.last.append(x)
        self._skipped += 1
        if self._skipped >= self._stride:
            self.points.append(x)
            self._skipped = 0
        if len(self.points) >= KEPT:
            self.points, self._stride = self.points[::2], 2 * self._stride

    def at(self, share: float, size: int = FIRST) -> float:
        """Median of some points up to that share of the curve; NaN for fewer."""
        end = round(share * len(self.points))
        return median(np.array(self.points[max(0, end - size) : end])) if end >= size else math.nan

    @property
    def first(self) -> float:
        """The first level; NaN for fewer than four points."""
        return median(np.array(self.points[:FIRST])) if len(self.points) >= FIRST else math.nan

    @property
    def now(self) -> float:
        """Median of the last eight points; NaN for fewer than four."""
        return median(np.array(self.last)) if len(self.last) >= FIRST else math.nan


class Gain:
    """How much of what a quality has gained it has now. Larger is better.

    gained: its best smoothed value minus the smallest before that. It counts where it is more than 2.5 times the noise
    of the points, then and now, and more than 1.5 times what a random walk of such changes covers. It is smoothed by
    the mean of the middle half of the last points, or of all where there are few different values.
    """

    def __init__(self) -> None:
        self._curve = Curve()
        self._past: deque[float] = deque(maxlen=2 * SMOOTH)
        self._jumps: deque[float] = deque(maxlen=MANY)
        self._different: set[float] = set()
        self._changes: deque[float] = deque(maxlen=KEPT)
        self._smooth: deque[float] = deque(maxlen=WIDE + 1)
        self._recent: deque[float] = deque(maxlen=RESTS)
        self._least, self.best, self._least_before = math.inf, -math.inf, math.nan
        self._points = 0
        self._noise_then = 0.0
        self.now = math.nan

    def push(self, x: float) -> None:
        """One more point."""
        self._curve.push(x)
        if self._past:
            self._jumps.append(abs(x - self._past[-1]))
        self._past.append(x)
        self._points += 1
        if len(self._different) <= COARSE:
            self._different.add(x)
        self.now = self._level()
        if math.isnan(self.now):
            return
        self._smooth.append(self.now)
        self._recent.append(self.now)
        if len(self._smooth) > self._size:
            self._changes.append(self.now - self._smooth[-1 - self._size])
        self._least = min(self._least, self.now)
        if self.now > self.best:
            self.best, self._least_before, self._noise_then = self.now, self._least, self.noise

    @property
    def _size(self) -> int:
        return SMOOTH if self._points < MANY else WIDE

    def _level(self) -> float:
        """The smoothed value; NaN for fewer than four points."""
        last = sorted(islice(reversed(self._past), self._size))
        if len(last) < FIRST:
            return math.nan
        left = 0 if self._counts_events else len(last) // 4
        return fsum(last[left : len(last) - left]) / (len(last) - 2 * left)

    @property
    def gained(self) -> float:
        """0 where nothing is clearly gained."""
        if len(self._changes) < SMOOTH:
            return 0.0
        gained = self.best - self._least_before
        noise = max(self.noise, self._noise_then)
        return gained if gained > max(2.5 * noise, 1.5 * self._walk, 1e-12) else 0.0

    @property
    def _walk(self) -> float:
        """What a random walk of such changes covers in as many points."""
        return robust_spread(np.array(self._changes)) * math.sqrt(self._points / self._size)

    @property
    def noise(self) -> float:
        """Scatter of the points, from their differences: events that are rare count too, and a single one."""
        if not self._jumps:
            return 0.0
        return max(self.scatter, fsum(self._jumps) / len(self._jumps) / MEAN_CHANGE, max(self._jumps) / LARGEST_CHANGE)

    @property
    def scatter(self) -> float:
        """Spread of the differences of the last points: half of what two thirds of them are within."""
        if len(self._past) <= 2:
            return 0.0
        changes = np.sort(np.diff(np.array(self._past)))
        return (_quantile(changes, 0.84) - _quantile(changes, 0.16)) / 2 / math.sqrt(2)

    @property
    def lost(self) -> float:
        """The share of the gain that is lost; 0 without a gain."""
        gained = self.gained
        return (self.best - self.now) / gained if gained else 0.0

    @property
    def fallen(self) -> float:
        """The share of its first level that a quality above zero has lost that never gained; 0 for less than chance.

        Chance: twice the noise of the points, and what a random walk of such changes covers. A walk goes on, also
        below zero: it counts where the last smoothed points are within a third of the fall, and none is below a floor.
        """
        first = self._first
        if len(self._recent) < RESTS or not first > 0 or self.best - first > HALF * (first - self._least):
            return 0.0
        fallen, rests = first - self.now, float(np.ptp(np.array(self._recent)))
        told = fallen > max(2.0 * self.noise, self._walk, 3.0 * rests) and self._least > -FLOOR * first
        return fallen / first if told else 0.0

    @property
    def _first(self) -> float:
        """The first level: of events a mean, as four of them say nothing."""
        return fsum(self._curve.points[:WIDE]) / WIDE if self._counts_events else self._curve.first

    @property
    def _counts_events(self) -> bool:
        return len(self._different) <= COARSE

    @property
    def reached(self) -> float:
        """The share of the gain that is there; 0 without a gain."""
        return 1.0 - self.lost if self.gained else 0.0

    @property
    def unsettled(self) -> float:
        """Scatter over what was gained between the smallest and the best value; 1 where it has not moved."""
        span = self.best - self._least
        return self.scatter / span if span > 0 else 1.0


def _quantile(ordered: Array, share: float) -> float:
    """Linear interpolation in ascending numbers. (np.quantile takes ten times as long on a few numbers.)"""
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return float(ordered[low] + (ordered[high] - ordered[low]) * (at - low))


class RoleFeature(RunFeature):
    """Reads numbers by their role. `signal` is the name of the first role's series."""

    _roles: RoleColumns

    def __init__(self, name: str, *roles: str) -> None:
        self._roles = RoleColumns(*roles)
        super().__init__(name, name)

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """See Feature."""
        super().bind(keys)
        self._roles.bind(keys)

    def numbers(self, step: int, values: Array) -> dict[str, float] | None:
        """See RunFeature. A log may contain any number, also such whose difference is infinite."""
        with np.errstate(all="ignore"):
            return super().numbers(step, values)

    def _of_a_policy(self, values: Array) -> bool:
        """Is the first role's number that of a policy? The feature has the roles of `EVIDENCE` among its own."""
        for role in EVIDENCE:
            self._roles.of(role, values)
        own = self._roles.roles[0]
        named = _OF_POLICY.search(spelled(self._roles.name(own))) is not None
        return named or self._roles.has(*EVIDENCE) or self._roles.is_measured(own)

    def _number(self, values: Array, role: str = "") -> float:
        """The finite number of a role, by default of the first one; NaN otherwise."""
        role = role or self._roles.roles[0]
        found = self._roles.of(role, values)
        if role == self._roles.roles[0] and not math.isnan(found):
            self.signal = self._roles.name(role)
        return found if math.isfinite(found) else math.nan


def own_roles(feature: RoleFeature, values: Array) -> Bools:
    """The declaration `measures` of a feature for which a record without its roles changes nothing; see `blocks`."""
    return feature._roles.measured(values)


def may_change(feature: Any) -> bool:
    """Whether a record of the layout that a feature is bound to can change anything for it."""
    measures = vars(type(feature)).get("measures")
    columns = feature._columns if measures is own_signals else feature._roles if measures is own_roles else None
    return columns is None or bool(columns.bound)
