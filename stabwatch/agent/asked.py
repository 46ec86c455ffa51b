"""Histories of signals that somebody asks for: any of them can be shown over layers and steps."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from stabwatch.agent.history import History
from stabwatch.runlog import RunLog

MOST = 6
"""Signals whose history is kept; the one that nobody has asked for for longest is forgotten."""
AT_A_TIME = 0.4
"""Seconds for which an answer reads on: a long log is read over several answers."""


@dataclass
class Asked:
    """The history of one signal, as far as the log has been read. share: that part of the log, 0 to 1."""

    log: RunLog
    history: History
    share: float = 0.0
    newest: int = -1
    asked: float = field(default_factory=time.monotonic)


class AskedSignals:
    """The histories of a run. For any thread. The log is read again for each signal, a part at a time."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._known: dict[str, Asked] = {}
        self._lock = threading.Lock()

    def read(self, signal: str) -> Asked:
        """Read on, for a moment. Raises RunLogError."""
        with self._lock:
            found = self._known.get(signal)
            if found is None:
                found = self._known[signal] = Asked(RunLog(self._run), History(frozenset({signal})))
            found.asked = until = time.monotonic()
            for block in found.log.stream(1 << 20):
                if block.steps[0] <= found.newest:
                    found.history.rewind(int(block.steps[0]))  # a later attempt of the run
                found.history.observe(block)
                found.newest = int(block.steps[-1])
                if time.monotonic() - until > AT_A_TIME:
                    break
            found.share = min(1.0, found.log.position / max(1, found.log.size - found.log.torn_bytes))
            for name in sorted(self._known, key=lambda n: self._known[n].asked)[:-MOST]:
                del self._known[name]
            return found
