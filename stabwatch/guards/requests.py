"""Requests of rank 0 to all ranks at an alert: escalate, and report the batches."""

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
"""Requests of one run that are answered with batches; later ones only escalate."""
MOST_ANSWERED = 4
"""Batches that one rank reports: the first micro-batches of the first of the steps."""
PATIENCE = 5.0
"""Seconds after which the answers are written, also if some ranks have not answered."""


@dataclass
class _Request:
    about: dict[str, Any]
    since: float
    batches: dict[int, list[dict[str, Any]]] = field(default_factory=dict)


class RankRequests:
    """Sends requests on rank 0 and receives them on the others, some steps later. No step waits for an answer."""

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
        self._open: dict[int, _Request] = {}

    def use(self, exchange: Exchange | None) -> None:
        """Reach other ranks through this exchange from now on."""
        self._exchange = exchange

    def make(self, since: int, onset: int, **about: Any) -> None:
        """Send a request, on rank 0 and from any thread. about: data of the alert, returned with the answers."""
        if self._exchange is None or self._exchange.rank:
            return
        if self._made < MOST:
            self._open[self._made] = _Request({"since": since, "onset": onset, **about}, self._clock())
        self._exchange.broadcast("request", [self._made, since, onset])
        self._made += 1

    def boundary(self) -> list[dict[str, Any]]:
        """Between two steps, on every rank. On rank 0, returns the answers: `about`, and the `batches`."""
        if self._exchange is None:
            return []
        if self._exchange.rank == 0:
            return self._collect(self._exchange)
        for number, since, onset in self._exchange.received("request"):
            self._closer()
            if number < MOST:
                # a batch may still be in transfer from the device, and training must not wait for it
                threading.Thread(target=self._answer, args=(self._exchange, number, since, onset), daemon=True).start()
        return []

    def _answer(self, exchange: Exchange, number: int, since: int, onset: int) -> None:
        known = [{"rank": exchange.number, **entry} for entry in self._batches.of(since, onset)[:MOST_ANSWERED]]
        exchange.reply("answer", [number, exchange.number, json.dumps(known, default=str)])

    def _collect(self, exchange: Exchange) -> list[dict[str, Any]]:
        for number, rank, known in exchange.received("answer"):
            if number in self._open:
                self._open[number].batches[rank] = json.loads(known)
        out = []
        for number, request in list(self._open.items()):
            if len(request.batches) >= exchange.world - 1 or self._clock() - request.since > PATIENCE:
                entries = [entry for rank in sorted(request.batches) for entry in request.batches[rank]]
                out += [{**request.about, "batches": entries}] if entries else []
                del self._open[number]
        return out
