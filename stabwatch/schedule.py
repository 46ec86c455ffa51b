"""When each tier is measured: the governor keeps the sum of all costs inside the overhead budget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

from stabwatch.signals.declaration import Tier

WARM_UP = 3
"""First steps, all measured: they show what there is to see and what it costs."""
LONGEST: dict[Tier, int] = {"always": 16, "sampled": 256, "deep": 1024}
"""Longest interval of each tier, in steps: however tight the budget, nothing is left unseen for longer."""
SHARE: dict[Tier, float] = {"always": 0.6, "sampled": 0.25, "deep": 0.15}
"""How the budget is split when all three tiers want more than there is."""
ESCALATE_AGAIN = 32
"""Alerts escalate once in this many times the steps of an escalation: on the whole the budget is kept."""
CONTROLS_UNTIL = 24
"""Up to this step every second one goes without the dearer tiers, to learn soon what they really cost."""
MEDIAN_ERROR = 1.86
"""Standard error of a median of n normal numbers, in median absolute deviations over sqrt(n): 1.4826 sqrt(pi / 2)."""
_MEMORY = 32


@dataclass(frozen=True)
class Plan:
    """What one step measures."""

    always: bool
    sampled: bool
    deep: bool


class Governor:
    """Chooses the tiers of each step from their measured cost.

    A tier of cost c (seconds for one measured step) that runs every k steps of s seconds costs c / (k s).
    Intervals are powers of two counted from step 0, so that ranks which measure different costs still
    sample common steps.
    Cost is host time inside the probes, and where that does not show it (compiled graphs) also the difference between
    the median step with measurements and without. overlapped: steps are timed on an accelerator, and while that has
    work queued the host's time costs nothing. There the difference is the cost, with two standard errors on top of it.
    """

    def __init__(self, budget: float, every_step: bool = False, overlapped: bool = False) -> None:
        self._budget = budget
        self._every_step = every_step
        self._overlapped = overlapped
        self._cost: dict[Tier, list[float]] = {"always": [], "sampled": [], "deep": []}
        self._bare: list[float] = []
        self._rest: dict[Tier, list[float]] = {"always": [], "sampled": [], "deep": []}
        """Step time, less the host's cost where it is part of it, by the dearest tier; 'always': the control steps."""
        self._spent = 0.0
        self._elapsed = 0.0
        self._asked_deep = False
        self._step = 0
        self._until = self._quiet = -1
        self.interval: dict[Tier, int] = {"always": 1, "sampled": 1, "deep": 1}
        self._since_deep = 0

    @property
    def overhead(self) -> float:
        """Share of recent wall time spent inside stabwatch: an exponential average over some hundred steps."""
        return self._spent / self._elapsed if self._elapsed else math.nan

    def ask_deep(self) -> None:
        """The deep tier is wanted soon (a bracket holds the limit); granted when it has not run for a while."""
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
        sampled = step % self.interval["sampled"] == 0 and not _is_control(step)
        phase = self.interval["deep"] // 2 + 1  # odd, so that no step carries both unless they are cheap
        deep = ((step + phase) % self.interval["deep"] == 0 and not _is_control(step)) or self._may_go_deep()
        return Plan(sampled or deep or step % self.interval["always"] == 0, sampled, deep)

    def _may_go_deep(self) -> bool:
        return self._asked_deep and self._since_deep >= max(2, self.interval["deep"] // 8)

    def observe(self, plan: Plan, step_seconds: float, cost: dict[Tier, float]) -> None:
        """Learn from one finished step: its wall time and the host time spent in each tier."""
        ran: dict[Tier, bool] = {"always": plan.always, "sampled": plan.sampled, "deep": plan.deep}
        own = sum(cost.values())
        rest = step_seconds if self._overlapped else max(step_seconds - own, 1e-9)
        _remember(self._bare, rest)
        _remember(self._rest["sampled" if plan.sampled else "deep" if plan.deep else "always"], rest)
        for tier, measured in ran.items():
            if measured:
                _remember(self._cost[tier], cost[tier])
        self._since_deep = 0 if plan.deep else self._since_deep + 1
        if plan.deep:
            self._asked_deep = False
        spent = sum(self._cost_of(tier, cost[tier]) for tier, measured in ran.items() if measured)
        self._spent = 0.99 * self._spent + spent
        self._elapsed = 0.99 * self._elapsed + step_seconds
        self._stretch()

    def _cost_of(self, tier: Tier, host: float) -> float:
        """Seconds of a measured step: `host` in the probes, and what the times of steps tell besides."""
        found = self._difference(tier)
        if found is None:
            return host
        more, error = found
        if self._overlapped:
            return min(host + max(more, 0.0), max(more, 0.0) + 2 * error)
        return host + (more if more > 3 * error else 0.0)

    def _difference(self, tier: Tier) -> tuple[float, float] | None:
        """Median step with this tier less the median control step, and its standard error; None: not known yet."""
        measured, control = self._rest[tier], self._rest["always"]
        if tier == "always" or len(measured) < 5 or len(control) < 5:
            return None
        middle = median(control)
        spread = median(abs(x - middle) for x in control)
        error = MEDIAN_ERROR * spread * math.sqrt(1 / len(measured) + 1 / len(control))
        return median(measured) - middle, error

    def _stretch(self) -> None:
        step = median(self._bare)
        room = self._budget * step
        cost = {tier: self._cost_of(tier, median(seen) if seen else 0.0) for tier, seen in self._cost.items()}
        for tier, share in SHARE.items():
            wanted = math.ceil(cost[tier] / max(room * share, 1e-12)) if cost[tier] > 0 else 1
            self.interval[tier] = min(LONGEST[tier], 1 << (wanted - 1).bit_length())


def _is_control(step: int) -> bool:
    """Steps that leave the dearer tiers out, to be compared with those that have them."""
    return step % 2 == 1 if step < CONTROLS_UNTIL else step % 16 == 15


def _remember(memory: list[float], value: float) -> None:
    memory.append(value)
    del memory[:-_MEMORY]
