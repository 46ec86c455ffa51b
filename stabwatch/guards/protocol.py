"""What a guard is: it acts on training when an alert fires."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    pass


class Reaction(Protocol):
    """What a guard does at an alert."""

    @property
    def name(self) -> str:
        """As in the setting `guard`."""

    def before(self, optimizer: Any, step: int) -> None:
        """An optimizer is about to step."""

    def after(self, optimizer: Any) -> None:
        """It has stepped."""

    def boundary(self, step: int) -> None:
        """Between two steps; `step` is the next one."""

    def react(self, since: int) -> dict[str, Any] | None:
        """Act on an alert, between two steps; says what was done, or None when nothing could be.

        since: the earliest step in which it can have begun.
        """
