"""Keys in the job's store, written and read by a thread of stabwatch: no call waits longer than it says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from stabwatch.distributed.exchange import Exchange

ANSWER = 5.0
"""Seconds to wait for the store."""
POLL = 0.05


class RankBoard:
    """exchange: that of this rank; None where it is alone, and keeps the keys to itself."""

    def __init__(self, exchange: Exchange | None) -> None:
        self.exchange = exchange
        self._mine: dict[str, str] = {}

    @property
    def host(self) -> str | None:
        """The host of the store; None where there is none."""
        return None if self.exchange is None else self.exchange.directory.host

    def put(self, name: str, value: str) -> None:
        """Write a key."""
        if self.exchange is None:
            self._mine[name] = value
        else:
            self.exchange.directory.put(name, value)

    def count_up(self, name: str) -> None:
        """Add one to a key."""
        if self.exchange is None:
            self._mine[name] = str(int(self._mine.get(name, 0)) + 1)
        else:
            self.exchange.directory.add(name)

    def ask(self, names: Iterable[str]) -> dict[str, str]:
        """The keys that are there; none where the store does not answer."""
        wanted = list(names)
        if self.exchange is None:
            return {name: self._mine[name] for name in wanted if name in self._mine}
        answer: dict[str, str | None] = {}
        done = threading.Event()

        def found(values: dict[str, str | None]) -> None:
            answer.update(values)
            done.set()

        self.exchange.directory.get(wanted, found)
        done.wait(ANSWER)
        return {name: value for name, value in answer.copy().items() if value is not None}

    def wait(self, names: Iterable[str], over: Callable[[], bool], pause: float = POLL) -> dict[str, str]:
        """The same, when all are there or it is over."""
        found: dict[str, str] = {}
        wanted = list(names)
        while wanted:
            found |= self.ask(wanted)
            wanted = [name for name in wanted if name not in found]
            if over():
                break
            if wanted:
                time.sleep(pause)
        return found
