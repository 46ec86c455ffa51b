"""An alert on rank 0 is a call to all ranks: look closer, and say which batch you had."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from stabwatch.distributed.exchange import Exchange
from stabwatch.hooks.probes.batches import Batches

MOST = 8
"""Calls of one run that are answered with batches; later ones bring a closer look only."""
MOST_ANSWERED = 4
"""Batches of one rank that are told: those of the first micro-batches of the first of the steps."""
PATIENCE = 5.0
"""Seconds after which what has been answered is written down, whoever is missing."""


@dataclass
class _Call:
    about: dict[str, Any]
    since: float
    batches: dict[int, list[dict[str, Any]]] = field(default_factory=dict)


class RankRequests:
    """Calls go out on rank 0 and are heard on the others within some steps; no step waits for an answer."""

    def __init__(
        self,
        exchange: Exchange | None,
        batches: Batches,
        closer: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._exchange = exchange
        self._batches = batches
        self._closer = closer
        self._clock = clock
        self._made = 0
        self._open: dict[int, _Call] = {}

    def make(self, since: int, onset: int, **about: Any) -> None:
        """Rank 0, any thread: call the others. about: facts of the alert, given back with the answers."""
        if self._exchange is None or self._exchange.rank:
            return
        if self._made < MOST:
            self._open[self._made] = _Call({"since": since, "onset": onset, **about}, self._clock())
        self._exchange.tell("call", [self._made, since, onset])
        self._made += 1

    def boundary(self) -> list[dict[str, Any]]:
        """Between two steps, on every rank. Gives, on rank 0, what was answered: `about`, and the `batches`."""
        if self._exchange is None:
            return []
        if self._exchange.rank == 0:
            return self._collect(self._exchange)
        for number, since, onset in self._exchange.received("call"):
            self._closer()
            if number < MOST:
                # a batch may still be on its way from the device, and the training does not wait for it
                threading.Thread(target=self._answer, args=(self._exchange, number, since, onset), daemon=True).start()
        return []

    def _answer(self, exchange: Exchange, number: int, since: int, onset: int) -> None:
        known = [{"rank": exchange.rank, **entry} for entry in self._batches.of(since, onset)[:MOST_ANSWERED]]
        exchange.reply("answer", [number, exchange.rank, json.dumps(known, default=str)])

    def _collect(self, exchange: Exchange) -> list[dict[str, Any]]:
        for number, rank, known in exchange.received("answer"):
            if number in self._open:
                self._open[number].batches[rank] = json.loads(known)
        out = []
        for number, call in list(self._open.items()):
            if len(call.batches) >= exchange.world - 1 or self._clock() - call.since > PATIENCE:
                entries = [entry for rank in sorted(call.batches) for entry in call.batches[rank]]
                out += [{**call.about, "batches": entries}] if entries else []
                del self._open[number]
        return out
