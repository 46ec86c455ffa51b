"""Why something was not measured, as the hooks noted it."""

from __future__ import annotations

import threading


class Reasons:
    """Reasons by what was not measured and where. Noted in the training thread, read in the writer's thread."""

    def __init__(self) -> None:
        self._reasons: dict[tuple[str, str], str] = {}
        self._lock = threading.Lock()

    def note(self, what: str, place: str, reason: str) -> None:
        """Remember a reason; the first one for each `what` and `place` is kept."""
        with self._lock:
            self._reasons.setdefault((what, place), reason)

    def withdraw(self, what: str, place: str) -> None:
        """The reason was not true."""
        with self._lock:
            self._reasons.pop((what, place), None)

    def get(self, what: str, place: str) -> str | None:
        """The reason, or None."""
        with self._lock:
            return self._reasons.get((what, place))

    def all(self) -> dict[tuple[str, str], str]:
        """A copy of all reasons."""
        with self._lock:
            return dict(self._reasons)
