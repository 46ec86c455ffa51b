"""What rank 0 decides, all ranks do at the same step."""

from __future__ import annotations

from typing import Any

from stabwatch.distributed.ranks import AHEAD, Ranks


class RankBroadcast:
    """Words of rank 0 for all ranks, each with the step before which it is to be heard.

    They go through the process group's store, a few steps ahead: more than ranks of one job can be apart. One look
    into the store per step, and no collective. With one rank they are heard at once.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._sent = self._received = 0
        self._waiting: list[tuple[int, str]] = []

    @property
    def possible(self) -> bool:
        """False while there are other ranks that cannot be told."""
        return self._ranks.world == 1 or self._ranks.active

    @property
    def pending(self) -> bool:
        """Something was said and is not due yet."""
        return bool(self._waiting) or self._sent > self._received

    def send(self, step: int, words: str) -> None:
        """Say something, before step `step`. Words of other ranks than 0 are not heard."""
        if self._ranks.world == 1:
            self._waiting.append((step, words))
        elif self._ranks.rank == 0:
            self._store.set(self._key(self._sent), f"{step + AHEAD} {words}")
            self._sent += 1

    def receive(self, step: int) -> list[str]:
        """What is to be done now, before step `step`."""
        if self._ranks.active and self._store.check([self._key(self._received)]):
            when, _, words = self._store.get(self._key(self._received)).decode().partition(" ")
            self._waiting.append((int(when), words))
            self._received += 1
        now = [words for when, words in self._waiting if when <= step]
        self._waiting = [(when, words) for when, words in self._waiting if when > step]
        return now

    @property
    def _store(self) -> Any:
        return self._ranks.store

    def _key(self, number: int) -> str:
        return f"{self._ranks.key}/said/{number}"
