"""Decisions of rank 0 that all ranks carry out at the same step."""

from __future__ import annotations

import time
from collections.abc import Callable

from stabwatch.distributed.exchange import Exchange

AHEAD = 8
"""Steps between a decision and its step: more than ranks of one job can be apart."""
PATIENCE = 10.0
"""Seconds to wait until all ranks have answered, before a message is withdrawn."""
NEVER = "never"


class RankBroadcast:
    """Messages from rank 0 to all ranks, each with the step before which it is delivered.

    A message takes two rounds, because a rank that missed it would continue with other weights than the rest. First
    rank 0 asks through the exchange whether all ranks are there. Each rank answers, and looks into the job's store at
    every step from then on. When all have answered, rank 0 writes the message into the store, with a step that is more
    steps ahead than ranks of one job can be apart. So all of them find it in time. This takes no collective, and no
    lookup in the store while there is no message. If a rank does not answer, the message is withdrawn. With one rank
    it is delivered at once.

    Steps are numbered by how many this rank has watched.
    exchange: None with one rank, or where ranks do not exchange anything (see `possible`).
    """

    def __init__(self, world: int, exchange: Exchange | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._world = world
        self._exchange = exchange
        self._clock = clock
        self._number = 0
        self._proposed: tuple[str, float] | None = None
        self._answered: set[int] = set()
        self._expected: dict[int, float] = {}
        self._waiting: list[tuple[int, str]] = []

    def use(self, exchange: Exchange | None) -> None:
        """Reach other ranks through this exchange from now on."""
        self._exchange = exchange

    @property
    def possible(self) -> bool:
        """False while there are other ranks that cannot be reached."""
        if self._exchange is None:
            return self._world == 1
        return not self._exchange.broken and (self._exchange.rank > 0 or self._exchange.covered == self._world)

    @property
    def pending(self) -> bool:
        """Whether a message was sent and is not due yet."""
        return bool(self._waiting) or self._proposed is not None

    def send(self, step: int, message: str) -> None:
        """Send a message before step `step`. Only messages of rank 0 are delivered."""
        if self._exchange is None:
            self._waiting.append((step, message))
        elif self._exchange.rank == 0:
            self._number += 1
            self._proposed, self._answered = (message, self._clock()), set()
            self._exchange.broadcast("prepare", self._number)

    def receive(self, step: int) -> tuple[list[str], list[str]]:
        """The messages that are due before step `step` on all ranks, and those that were withdrawn."""
        withdrawn: list[str] = []
        if self._exchange is not None:
            if self._exchange.rank == 0:
                withdrawn = self._decide(self._exchange, step)
            else:
                self._look(self._exchange)
        now = [message for when, message in self._waiting if when <= step]
        self._waiting = [(when, message) for when, message in self._waiting if when > step]
        return now, withdrawn

    def _decide(self, exchange: Exchange, step: int) -> list[str]:
        for number, rank in exchange.received("prepared"):
            if number == self._number:
                self._answered.add(rank)
        if self._proposed is None:
            return []
        message, since = self._proposed
        if len(self._answered) == self._world - 1:
            exchange.directory.set_now(_key(self._number), f"{step + AHEAD} {message}")
            self._waiting.append((step + AHEAD, message))
            self._proposed = None
        elif self._clock() - since > PATIENCE:
            exchange.directory.set_now(_key(self._number), NEVER)
            self._proposed = None
            return [message]
        return []

    def _look(self, exchange: Exchange) -> None:
        for number in exchange.received("prepare"):
            self._expected[number] = self._clock()
            exchange.reply("prepared", [number, exchange.rank])
        for number, since in list(self._expected.items()):
            found = exchange.directory.read_now(_key(number))
            if found is not None and found != NEVER:
                when, _, message = found.partition(" ")
                self._waiting.append((int(when), message))
            if found is not None or self._clock() - since > 3 * PATIENCE:
                del self._expected[number]


def _key(number: int) -> str:
    return f"message/{number}"
