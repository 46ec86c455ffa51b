"""One cadence for all ranks: the governor of rank 0 decides, and every rank measures the same steps.

What only some ranks measured is a value of some ranks, and weights that one rank alone measured cannot be compared.
Rank 0 sends each change through the exchange, with the step from which it applies, some steps ahead. A message that
comes later than its step applies at once. Until the first one has come, the tier `always` is measured at
every step, and the intervals of the other tiers grow with the number of the step.
"""

from __future__ import annotations

import math
from dataclasses import asdict

from stabwatch.distributed.exchange import Exchange
from stabwatch.runtime.governor import CONTROLS_UNTIL, LONGEST, Cadence, Governor

AHEAD_STEPS, AHEAD_SECONDS, MOST_AHEAD = 8, 0.3, 512
"""How far ahead of its step a change is sent: that long, and at least so many steps."""
EARLY = 8
"""Until rank 0 has spoken, the interval of the other tiers at step n is the largest power of two up to n / EARLY."""
TOPIC = "cadence"


class RankCadence:
    """Keeps the governor of one rank on the cadence of all. exchange: None with one rank."""

    def __init__(self, governor: Governor, exchange: Exchange | None) -> None:
        self._governor = governor
        self._exchange = exchange
        self._next: Cadence | None = None
        self._sent: Cadence | None = None

    def use(self, exchange: Exchange | None) -> None:
        """Reach other ranks through this exchange from now on."""
        self._exchange, self._next, self._sent = exchange, None, None

    def restarts(self, step: int, phase: int, step_seconds: float) -> int | None:
        """Prepare the plan of `step`. The phase that the step before it had, if it is another one than this rank's.

        step: how many steps this rank has watched. phase: that of the step before. step_seconds: how long a step takes.
        """
        exchange = self._exchange
        if exchange is None:
            return None
        if exchange.broken:
            self._exchange = None
            self._governor.follow(None)
            return None
        if self._governor.followed is None or not self._governor.followed.agreed:
            self._governor.follow(early(step))
        if exchange.rank == 0:
            self._send(exchange, step, phase, step_seconds)
        else:
            for message in exchange.received(TOPIC):
                self._next = Cadence(**message)
        return self._adopt(step)

    def _adopt(self, step: int) -> int | None:
        cadence = self._next
        if cadence is None or step < cadence.since:
            return None
        self._next = None
        self._governor.follow(cadence)
        deep = sum(self._governor.plan(passed).deep for passed in range(cadence.since, step))
        return (cadence.phase + deep) % cadence.phases

    def _send(self, exchange: Exchange, step: int, phase: int, step_seconds: float) -> None:
        governor = self._governor
        wish = governor.wish
        asked = governor.may_go_deep()
        unchanged = self._sent is not None and self._sent.same_pace(wish) and not asked
        if step < CONTROLS_UNTIL or self._next is not None or unchanged:
            return
        since = step + min(MOST_AHEAD, max(AHEAD_STEPS, math.ceil(AHEAD_SECONDS / max(step_seconds, 1e-6))))
        deep = sum(governor.plan(coming).deep for coming in range(step, since))
        self._sent = self._next = Cadence(
            wish.intervals, wish.phases, since, (phase + deep) % wish.phases, since if asked else -1, agreed=True
        )
        exchange.broadcast(TOPIC, asdict(self._next))


def early(step: int) -> Cadence:
    """What all ranks follow before rank 0 has spoken."""
    interval = 1 << max(0, (step // EARLY).bit_length() - 1)
    return Cadence({tier: 1 if tier == "always" else min(longest, interval) for tier, longest in LONGEST.items()})
