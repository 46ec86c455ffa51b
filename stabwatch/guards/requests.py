"""Requests of rank 0 to all ranks at an alert: escalate, and report the batches."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

from stabwatch.distributed.ranks import Ranks
from stabwatch.hooks.probes.batches import Batches

EVERY = 16
"""Steps between two lookups in the process group's store."""
MOST = 8
"""Requests of one run that are answered with batches; later ones only escalate."""
MOST_ANSWERED = 4
"""Batches that one rank reports: the first micro-batches of the first of the steps."""


class RankRequests:
    """Sends requests on rank 0 and receives them on the others, up to 16 steps later. No step waits for an answer."""

    def __init__(self, ranks: Ranks, batches: Batches, closer: Callable[[], None]) -> None:
        self._ranks = ranks
        self._batches = batches
        self._closer = closer
        self._made = self._received = 0
        self._open: dict[int, dict[str, Any]] = {}

    def make(self, since: int, onset: int, **about: Any) -> None:
        """Send a request, on rank 0 and from any thread. about: data of the alert, returned with the answers."""
        if self._ranks.active and self._ranks.rank == 0:
            self._ranks.store.set(f"{self._key}/{self._made}", f"{since} {onset}")
            if self._made < MOST:
                self._open[self._made] = {"since": since, "onset": onset, **about}
            self._made += 1

    def boundary(self, step: int) -> list[dict[str, Any]]:
        """Between two steps, on every rank. On rank 0, returns the answers: `about`, and the `batches`."""
        if step % EVERY or not self._ranks.active:
            return []
        if self._ranks.rank == 0:
            return self._collect()
        while self._ranks.store.check([f"{self._key}/{self._received}"]):
            self._closer()
            if self._received < MOST:
                # a batch may still be in transfer from the device, and training must not wait for it
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
