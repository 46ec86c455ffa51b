"""Evaluates the rules on runs that go on without an agent of their own, in the place of one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stabwatch.agent.discovery import is_led
from stabwatch.agent.server import RunPages
from stabwatch.agent.state import Follower
from stabwatch.serve.run import ListedRun

GRACE_SECONDS = 60.0
"""How long a run whose agent is missing is left to it."""
LINGER_SECONDS = 60.0
"""How long an ended run is still followed: its last alerts are written."""


Made = Callable[[ListedRun, Follower], Callable[[], object]]


def _nothing() -> None:
    pass


@dataclass
class _Judged:
    follower: Follower
    pages: RunPages
    close: Callable[[], object] = _nothing
    ended: float | None = None


class Judges:
    """A follower with the lease of each run that has no agent. `poll` is called by one thread.

    options: of each `Follower`. made: called with each new run and its
    follower, so that others hear of its alerts; it returns what ends that.
    """

    def __init__(self, options: dict[str, Any], made: Made = lambda run, follower: _nothing) -> None:
        self._options = options
        self._made = made
        self._judged: dict[Path, _Judged] = {}
        self._without: dict[Path, float] = {}

    def poll(self, live: Iterable[ListedRun], stopping: Callable[[], bool] = lambda: False) -> None:
        """Look at the runs that go on; read and judge what is new in those that have no agent."""
        for run in live:
            if run.path not in self._judged and self._is_without_agent(run):
                self._begin(run)
        for path, judged in list(self._judged.items()):
            if stopping():
                return
            judged.follower.poll()
            over = judged.follower.ended is not None
            judged.ended = (judged.ended or time.monotonic()) if over else None
            if (judged.ended is not None and time.monotonic() - judged.ended > LINGER_SECONDS) or not path.is_dir():
                self._end(path)

    def pages(self, path: Path) -> RunPages | None:
        """The pages of a run that is judged here. For any thread."""
        found = self._judged.get(path)
        return None if found is None else found.pages

    def followers(self) -> list[Follower]:
        """Those at work. For any thread."""
        return [judged.follower for judged in list(self._judged.values())]

    def close(self) -> None:
        """Leave all runs to others."""
        for path in list(self._judged):
            self._end(path)

    def _is_without_agent(self, run: ListedRun) -> bool:
        if is_led(run.path):
            self._without.pop(run.path, None)
            return False
        since = self._without.setdefault(run.path, time.monotonic())
        return not run.agent or time.monotonic() - since >= GRACE_SECONDS

    def _begin(self, run: ListedRun) -> None:
        try:
            follower = Follower(run.path, charted=frozenset(), **self._options)
        except Exception:  # whatever is wrong with one run, the others are judged; its row says what cannot be read
            return
        if not follower.lease.held():
            return  # its folder may not be written
        close = self._made(run, follower)
        self._judged[run.path] = _Judged(follower, RunPages(follower), close)
        self._without.pop(run.path, None)

    def _end(self, path: Path) -> None:
        judged = self._judged.pop(path)
        judged.close()
        judged.follower.lease.release()
