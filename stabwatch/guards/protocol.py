"""The protocol of guards that act when an alert fires."""

from __future__ import annotations

from typing import Any, Protocol


class Reaction(Protocol):
    """A guard that acts on an alert."""

    @property
    def name(self) -> str:
        """Its name in the setting `guard`."""

    def before(self, optimizer: Any, step: int) -> None:
        """An optimizer is about to step."""

    def after(self, optimizer: Any) -> None:
        """The optimizer has stepped."""

    def boundary(self, step: int) -> None:
        """Between two steps; `step` is the next one."""

    def react(self, since: int) -> dict[str, Any] | None:
        """Act on an alert, between two steps. Returns what was done, or None if nothing could be done.

        since: the earliest step in which the fault can have begun.
        """
