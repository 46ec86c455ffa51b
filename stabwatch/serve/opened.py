"""Runs whose page is open: each is read as a whole, in a thread of its own, until nobody looks any more."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stabwatch.agent.server import RunPages
from stabwatch.agent.state import Follower

MOST = 12
"""Runs that are open at a time; the one that nobody has looked at for longest is closed."""
IDLE_SECONDS = 120.0
POLL_SECONDS = 0.5
ABOVE = "../../"
"""Address of the list, from that of a run."""


@dataclass
class _Open:
    follower: Follower
    pages: RunPages
    asked: float = field(default_factory=time.monotonic)


class Opened:
    """The open runs. They read, and never write. options: of each `Follower`."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._open: dict[Path, _Open] = {}
        self._lock = threading.Lock()

    def pages(self, path: Path) -> RunPages:
        """The pages of a run, which is read from now on. Raises RunLogError."""
        with self._lock:
            found = self._open.get(path)
            if found is None:
                follower = Follower(path, writes=False, **self._options)
                found = self._open[path] = _Open(follower, RunPages(follower, ABOVE))
                threading.Thread(target=self._follow, args=(path, found), name="opened", daemon=True).start()
            found.asked = time.monotonic()
            for old in sorted(self._open, key=lambda p: self._open[p].asked)[:-MOST]:
                self._open.pop(old).follower.stopping.set()
        return found.pages

    def close(self) -> None:
        """Stop reading."""
        with self._lock:
            for opened in self._open.values():
                opened.follower.stopping.set()
            self._open.clear()

    def _follow(self, path: Path, mine: _Open) -> None:
        while not mine.follower.stopping.is_set():
            mine.follower.poll()
            mine.follower.stopping.wait(POLL_SECONDS)
            with self._lock:
                if time.monotonic() - mine.asked > IDLE_SECONDS and self._open.get(path) is mine:
                    del self._open[path]
                    return
