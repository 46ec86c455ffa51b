"""Decisions of rank 0 that all ranks carry out at the same step."""

from __future__ import annotations

from typing import Any

from stabwatch.distributed.ranks import AHEAD, Ranks


class RankBroadcast:
    """Messages from rank 0 to all ranks, each with the step before which it is delivered.

    They go through the process group's store, more steps ahead than ranks of one job can be apart. This takes one
    lookup in the store per step, and no collective. With one rank they are delivered at once.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._sent = self._received = 0
        self._waiting: list[tuple[int, str]] = []

    @property
    def possible(self) -> bool:
        """False while there are other ranks that cannot be reached."""
        return self._ranks.world == 1 or self._ranks.active

    @property
    def pending(self) -> bool:
        """Whether a message was sent and is not due yet."""
        return bool(self._waiting) or self._sent > self._received

    def send(self, step: int, message: str) -> None:
        """Send a message before step `step`. Only messages of rank 0 are delivered."""
        if self._ranks.world == 1:
            self._waiting.append((step, message))
        elif self._ranks.rank == 0:
            self._store.set(self._key(self._sent), f"{step + AHEAD} {message}")
            self._sent += 1

    def receive(self, step: int) -> list[str]:
        """The messages that are due before step `step`."""
        if self._ranks.active and self._store.check([self._key(self._received)]):
            when, _, message = self._store.get(self._key(self._received)).decode().partition(" ")
            self._waiting.append((int(when), message))
            self._received += 1
        now = [message for when, message in self._waiting if when <= step]
        self._waiting = [(when, message) for when, message in self._waiting if when > step]
        return now

    @property
    def _store(self) -> Any:
        return self._ranks.store

    def _key(self, number: int) -> str:
        return f"{self._ranks.key}/message/{number}"
