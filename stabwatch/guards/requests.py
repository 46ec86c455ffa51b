"""An alert on rank 0 is a call to all ranks: look closer, and say which batch you had."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

from stabwatch.distributed.ranks import Ranks
from stabwatch.hooks.probes.batches import Batches

EVERY = 16
"""Steps between two looks into the process group's store."""
MOST = 8
"""Calls of one run that are answered with batches; later ones bring a closer look only."""
MOST_ANSWERED = 4
"""Batches of one rank that are told: those of the first micro-batches of the first of the steps."""


class RankRequests:
    """Calls go out on rank 0 and are heard on the others, up to 16 steps later; no step waits for an answer."""

    def __init__(self, ranks: Ranks, batches: Batches, closer: Callable[[], None]) -> None:
        self._ranks = ranks
        self._batches = batches
        self._closer = closer
        self._made = self._received = 0
        self._open: dict[int, dict[str, Any]] = {}

    def make(self, since: int, onset: int, **about: Any) -> None:
        """Rank 0, any thread: call the others. about: facts of the alert, given back with the answers."""
        if self._ranks.active and self._ranks.rank == 0:
            self._ranks.store.set(f"{self._key}/{self._made}", f"{since} {onset}")
            if self._made < MOST:
                self._open[self._made] = {"since": since, "onset": onset, **about}
            self._made += 1

    def boundary(self, step: int) -> list[dict[str, Any]]:
        """Between two steps, on every rank. Gives, on rank 0, what all have answered: `about`, and the `batches`."""
        if step % EVERY or not self._ranks.active:
            return []
        if self._ranks.rank == 0:
            return self._collect()
        while self._ranks.store.check([f"{self._key}/{self._received}"]):
            self._closer()
            if self._received < MOST:
                # a batch may still be on its way from the device, and the training does not wait for it
                threading.Thread(target=self._answer, args=(self._received,), daemon=True).start()
            self._received += 1
        return []

    def _answer(self, number: int) -> None:
        since, onset = map(int, self._ranks.store.get(f"{self._key}/{number}").split())
        known = [{"rank": self._ranks.rank, **entry} for entry in self._batches.of(since, onset)[:MOST_ANSWERED]]
        self._ranks.store.set(self._place(number, self._ranks.rank), json.dumps(known, default=str))

    def _collect(self) -> list[dict[str, Any]]:
        out = []
        for number, about in list(self._open.items()):
            places = [self._place(number, rank) for rank in range(1, self._ranks.world)]
            if self._ranks.store.check(places):
                answers = [json.loads(self._ranks.store.get(place)) for place in places]
                out.append({**about, "batches": [entry for answer in answers for entry in answer]})
                del self._open[number]
        return out

    @property
    def _key(self) -> str:
        return f"{self._ranks.key}/call"

    def _place(self, number: int, rank: int) -> str:
        return f"{self._key}/{number}/{rank}"
