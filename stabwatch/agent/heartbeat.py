"""A dead-man heartbeat: somebody else alarms when it stops, as this machine cannot tell that it is gone."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

from stabwatch.agent.receivers import Refused, post

HEARTBEAT = "STABWATCH_HEARTBEAT"
"""Environment variable: an address that is asked once a minute. Services such as healthchecks.io give one."""
SECONDS = 60.0


class Heartbeat:
    """Sends an empty object to an address every minute while `alive` says so."""

    def __init__(self, url: str, alive: Callable[[], bool], seconds: float = SECONDS) -> None:
        self._url, self._alive, self._seconds = url, alive, seconds
        self._failing = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="stabwatch-heartbeat", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._stopping.set()
        self._thread.join(1.0)

    def _work(self) -> None:
        while True:
            if self._alive():
                self._beat()
            if self._stopping.wait(self._seconds):
                return

    def _beat(self) -> None:
        try:
            post(self._url, {})
            self._failing = False
        except Refused as error:
            if not self._failing:
                print(f"stabwatch: the heartbeat was not accepted: {error}.", file=sys.stderr, flush=True)
            self._failing = True
