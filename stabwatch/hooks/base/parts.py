"""Models whose parts the training loop calls, one after the other, and that are never called themselves."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

_NO_FORWARD = vars(nn.Module)["forward"]


def has_forward(model: nn.Module) -> bool:
    """False for a list of modules, and for a class that only has methods of its own."""
    return getattr(type(model), "forward", _NO_FORWARD) is not _NO_FORWARD or "forward" in vars(model)


class Parts:
    """What is known of the parts of one model, and which were called since the last backward pass.

    All of them together are one forward: it begins with the first call, and ends where a part is called again or a
    backward pass begins.
    followed: calls of parts count. seen: a part was called outside of a call of the model. end: ends the forward.
    """

    def __init__(self) -> None:
        self.followed = False
        self.seen = False
        self.end: Callable[[], None] = lambda: None
        self._called: set[str] = set()

    def backward_begins(self, forwards: int) -> None:
        """If the model was never called and its parts were, follow them from now on; the forward is over."""
        if self.followed:
            self.end()
        elif self.seen and not forwards:
            self.followed = True

    def leave(self) -> None:
        """The model itself is called."""
        self.followed, self._called = False, set()

    def repeats(self, name: str) -> bool:
        """Notes a call of a part; was it called in this forward already?"""
        if name in self._called:
            return True
        self._called.add(name)
        return False

    def __contains__(self, name: str) -> bool:
        return name in self._called

    def forget(self) -> None:
        """The forward is over."""
        self._called = set()
