"""When each tier is measured: the governor keeps the sum of all costs inside the overhead budget.

Every step has the trained loss, the gradient norm, the learning rate and its time, whatever the budget. That costs too
little to be worth a gap, and what it costs is taken from the budget of the tiers.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from itertools import product
from statistics import fmean, median
from typing import NamedTuple, TypeAlias

from stabwatch.hooks.base.flags import PHASES
from stabwatch.signals.declaration import Tier

WARM_UP = 3
"""First steps, all measured: they show what there is to see and what it costs."""
LONGEST: dict[Tier, int] = {"always": 16, "sampled": 256, "deep": 1024}
"""Longest interval of each tier, in steps, however tight the budget."""
SHARE: dict[Tier, float] = {"always": 0.6, "sampled": 0.25, "deep": 0.15}
"""How the budget is split when all three tiers want more than there is."""
LEAST = 0.3
"""Share of the budget that the tiers have in any case, whatever every step costs without them."""
ESCALATE_AGAIN = 32
"""Alerts escalate once in this many times the steps of an escalation: on the whole the budget is kept."""
CONTROLS_UNTIL = 24
"""Up to this step every second one omits the more expensive tiers, to learn early what they really cost."""
MAX_PHASES = 256
AT_ONCE = 128
"""Sites that a deep step measures at most before their cost is known."""
EXPENSIVE, CHEAP = 0.2, 0.05
"""Where a deep step is longer by more than `EXPENSIVE` of a step, its sites are spread over more phases; by less than
`CHEAP`, over fewer."""
WORTH = 0.75
"""The phases are doubled again only if the last doubling left at most this share of the cost: a part of it is fixed."""
MEDIAN_ERROR = 1.86
"""Standard error of a median of n normal numbers, in median absolute deviations over sqrt(n): 1.4826 sqrt(pi / 2)."""
KEPT = 0.99
"""Weight of a step in the overhead beside that of the step after it."""
_ENOUGH = 5
"""Steps of a kind before their median says something."""
_MEMORY = 32
_Memory: TypeAlias = deque[float]


class Plan(NamedTuple):
    """What one step measures."""

    always: bool
    sampled: bool
    deep: bool

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """The tiers that it measures."""
        return _TIERS[self]

    @property
    def kind(self) -> str:
        """Its most expensive tier: steps of one kind are compared with those of another."""
        return "sampled" if self.sampled else "deep" if self.deep else "always" if self.always else "bare"


_TIERS: dict[Plan, tuple[Tier, ...]] = {
    Plan(*ran): tuple(tier for tier, one in zip(SHARE, ran, strict=True) if one)
    for ran in product((False, True), repeat=len(SHARE))
}


@dataclass(frozen=True)
class Cadence:
    """How often each tier is measured, for all ranks alike: intervals in steps, and the phases of the deep tier.

    since: the step from which it applies. phase: that of the step before. extra: a step with the deep tier besides.
    agreed: rank 0 has sent it.
    """

    intervals: dict[Tier, int]
    phases: int = PHASES
    since: int = 0
    phase: int = 0
    extra: int = -1
    agreed: bool = False

    def same_pace(self, other: Cadence) -> bool:
        """Are intervals and phases equal?"""
        return (self.intervals, self.phases) == (other.intervals, other.phases)


class Governor:
    """Chooses the tiers of each step from their measured cost.

    A tier of cost c (seconds for one measured step) that runs every k steps of s seconds costs c / (k s).
    Intervals are powers of two counted from step 0, so that ranks which measure different costs still
    sample common steps. With each measurement an interval grows to its double at most: first steps compile and
    allocate, and what they cost is not what the later ones do.
    Cost is processor time inside the probes, and where that does not show it (compiled graphs) also the difference
    between the median step with measurements and without, in processor time too: other jobs on the machine make steps
    longer, and do not change that. overlapped: steps are timed on an accelerator, and while that has work queued the
    host's time costs nothing. There the difference is the cost, with two standard errors on top of it.

    followed: the cadence of all ranks, in place of the intervals that this rank would choose.
    """

    def __init__(self, budget: float, every_step: bool = False, overlapped: bool = False) -> None:
        self._budget = budget
        self._every_step = every_step
        self._overlapped = overlapped
        self._cost: dict[Tier, _Memory] = {tier: _memory() for tier in SHARE}
        self._first: dict[Tier, _Memory] = {tier: _memory() for tier in SHARE}
        """Host time of the first steps, which says little."""
        self._bare = _memory()
        self._basics = _memory()
        """Processor time of steps that measure no tier."""
        self._beside = _memory()
        """Processor time of the thread that writes; most steps have none, as it writes several records at a time."""
        self._waits = _memory()
        """Step time that is not processor time: what every step waits for, and what other jobs take now and then."""
        self._rest: dict[str, _Memory] = {kind: _memory() for kind in (*SHARE, "bare")}
        """Step time, less the host's cost where it is part of it, by the kind of step."""
        self._spent = 0.0
        self._elapsed = 0.0
        self._asked_deep = False
        self._step = self._seen = 0
        self._until = self._quiet = -1
        self.interval: dict[Tier, int] = dict.fromkeys(SHARE, 1)
        self._more: dict[Tier, tuple[float, float] | None] = dict.fromkeys(SHARE)
        self._most: dict[Tier, int] = dict.fromkeys(SHARE, 2)
        self._since_deep = 0
        self._phases = PHASES
        self.followed: Cadence | None = None
        self._rebalanced_at = math.inf

    @property
    def overhead(self) -> float:
        """Share of recent wall time spent inside stabwatch: an exponential average over some hundred steps."""
        return self._spent / self._elapsed if self._elapsed else math.nan

    def spread(self, sites: int) -> None:
        """So many sites are measured in turn: thousands of them are spread over more phases from the start."""
        while self._phases * AT_ONCE < sites and self._phases < MAX_PHASES and not self._every_step:
            self._phases *= 2

    def warm_up(self) -> None:
        """Something new is to be measured: everything at each of the next steps, as at the start of a run."""
        self._until = max(self._until, self._step + WARM_UP)

    def ask_deep(self) -> None:
        """The deep tier is wanted soon (a bracket contains the limit); it is run unless it has just run."""
        self._asked_deep = True

    def escalate(self, steps: int) -> None:
        """An alert: everything at each of the next `steps` steps, whatever it costs; then not again for a while."""
        if self._step >= self._quiet:
            self._until = self._step + steps + 1
            self._quiet = self._step + ESCALATE_AGAIN * steps

    def plan(self, step: int) -> Plan:
        """What step number `step` (from 0) measures."""
        self._step = max(self._step, step)
        if self._every_step or step < WARM_UP or step < self._until:
            return Plan(True, True, True)
        if self._overlapped and _is_bare(step):
            return Plan(False, False, False)
        interval = self.interval if self.followed is None else self.followed.intervals
        extra = self.may_go_deep() if self.followed is None else step == self.followed.extra
        sampled = step % interval["sampled"] == 0 and not _is_control(step)
        deep = (_has_deep(step, interval["deep"]) and not _is_control(step)) or extra
        return Plan(sampled or deep or step % interval["always"] == 0, sampled, deep)

    def follow(self, cadence: Cadence | None) -> None:
        """Plan by the cadence of all ranks from now on; None: by what was measured here."""
        self.followed = cadence

    @property
    def wish(self) -> Cadence:
        """The cadence that follows from what was measured here."""
        return Cadence(dict(self.interval), self._phases)

    @property
    def phases(self) -> int:
        """In how many deep steps every site that is measured in turn is measured once."""
        return self._phases if self.followed is None else self.followed.phases

    def may_go_deep(self) -> bool:
        """Is the deep tier asked for, and has it not just run?"""
        return self._asked_deep and self._since_deep >= max(2, self.interval["deep"] // 8)

    def observe(
        self, plan: Plan, step_seconds: float, cost: dict[Tier, float], busy: float = math.inf, beside: float = 0.0
    ) -> None:
        """Learn from one finished step: its duration, the processor time spent in each tier, and that of all (`busy`).

        Both are of the thread that trains. Without `busy` the step waited for nothing. beside: processor time of our
        thread that writes the log: it and the training take turns in Python.
        """
        busy = min(busy, step_seconds)
        paid, kind = sum(cost.values()), plan.kind
        rest = step_seconds if self._overlapped else max(busy - paid, 1e-9)
        self._bare.append(rest)
        self._waits.append(0.0 if self._overlapped else step_seconds - busy)
        if kind == "bare":
            self._basics.append(paid)
        beside = 0.0 if self._overlapped else beside
        self._beside.append(beside)
        warm, self._seen = self._seen < WARM_UP, self._seen + 1
        if not warm:
            self._rest[kind].append(rest)
        for tier in plan.tiers:
            (self._first if warm else self._cost)[tier].append(cost[tier])
            self._most[tier] = min(LONGEST[tier], self._most[tier] * (1 if warm else 2))
        self._since_deep = 0 if plan.deep else self._since_deep + 1
        if plan.deep:
            self._asked_deep = False
        self._spent = KEPT * self._spent + self._paid(plan, cost) + beside
        self._elapsed = KEPT * self._elapsed + (step_seconds if self._overlapped else busy + min(self._waits))
        if self._seen <= CONTROLS_UNTIL or kind in ("sampled", "deep") or self._seen % 16 == 0:
            self._more = {tier: self._difference(tier) for tier in SHARE}
            self._stretch()

    def _paid(self, plan: Plan, cost: dict[Tier, float]) -> float:
        """Seconds that this step has cost. Host time outside of the tiers that were planned is paid too."""
        total = 0.0 if self._overlapped else sum(cost.values())
        for tier in plan.tiers:
            total += self._cost_of(tier, cost[tier]) - (0.0 if self._overlapped else cost[tier])
        return total

    def _cost_of(self, tier: Tier, host: float) -> float:
        """Seconds of a measured step: `host` in the probes, and what the times of steps tell besides."""
        found = self._more[tier]
        if found is None:
            return host
        more, error = found
        if self._overlapped:
            return min(host + max(more, 0.0), max(more, 0.0) + 2 * error)
        return host + (more if more > 3 * error else 0.0)

    def _difference(self, tier: Tier) -> tuple[float, float] | None:
        """Median step with this tier less the median step without, and its standard error; None: not known yet."""
        measured, control = self._rest[tier], self._control(tier)
        if len(measured) < _ENOUGH or len(control) < _ENOUGH:
            return None
        middle = median(control)
        spread = median(abs(x - middle) for x in control)
        error = MEDIAN_ERROR * spread * math.sqrt(1 / len(measured) + 1 / len(control))
        return median(measured) - middle, error

    def _control(self, tier: Tier) -> list[float]:
        """Steps to compare those of a tier with. Without an accelerator nothing is hidden in what runs always."""
        if tier == "always":
            return [*self._rest["bare"]] if self._overlapped else []
        if self._overlapped and len(self._rest["always"]) >= _ENOUGH:
            return [*self._rest["always"]]
        return [*self._rest["always"], *self._rest["bare"]]

    def _stretch(self) -> None:
        step = median(self._bare) + min(self._waits)
        basics = median(self._basics) if self._basics else 0.0
        room = max(self._budget * step - basics - fmean(self._beside), LEAST * self._budget * step, 1e-12)
        for tier, share in SHARE.items():
            seen = self._cost[tier] or self._first[tier]
            cost = self._cost_of(tier, max(0.0, median(seen) - basics * (tier == "always")) if seen else 0.0)
            wanted = math.ceil(cost / (room * share)) if cost > 0 else 1
            self.interval[tier] = min(LONGEST[tier], self._most[tier], 1 << (wanted - 1).bit_length())
            if tier == "deep" and len(self._cost["deep"]) >= _ENOUGH and not self._every_step:
                self._rebalance(cost / step)

    def _rebalance(self, share: float) -> None:
        """Over how many steps: what was learned of their cost so far is taken to change as their number does."""
        phases = self._phases
        if share > EXPENSIVE and share < WORTH * self._rebalanced_at:
            phases, self._rebalanced_at = min(phases * 2, MAX_PHASES), share
        elif share < CHEAP:
            phases, self._rebalanced_at = max(phases // 2, PHASES), math.inf
        if phases != self._phases:
            self._cost["deep"] = _memory(self._cost["deep"][-1] * self._phases / phases)
            self._rest["deep"].clear()
            self._phases = phases


def _has_deep(step: int, interval: int) -> bool:
    """Even steps, which are never controls; from 8 on no multiples of 4, at which the sampled tier may have its own."""
    return step % interval == (interval // 2 + 2 if interval > 4 else 0)


def _is_control(step: int) -> bool:
    """Steps without the more expensive tiers, for comparison with those that have them."""
    return step % 2 == 1 if step < CONTROLS_UNTIL else step % 16 == 15


def _is_bare(step: int) -> bool:
    """Some of the controls, which leave out all tiers."""
    return step % 4 == 3 if step < CONTROLS_UNTIL else step % 64 == 47


def _memory(*values: float) -> _Memory:
    """Of the last steps."""
    return deque(values, maxlen=_MEMORY)
