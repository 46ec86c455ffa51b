"""Room on Python's stack: where a module has hooks, its call takes one frame more than torch's three.

A model whose modules are deep inside each other (a recursion over a tree, say) reaches Python's limit of nested calls
earlier then, and a training that works alone must work with a watch.
"""

from __future__ import annotations

import sys

FRAMES = 3
"""Frames of a call of a module without hooks."""
BESIDE = 100
"""For what a hook calls."""
MOST = 20_000
"""Higher limits are left as they are: who has set them has taken care."""


class CallDepth:
    """The limit of nested calls, higher by the frames of hooks while there are watches in the process."""

    def __init__(self) -> None:
        self._watches = self._before = self._set = 0

    def make_room(self) -> None:
        """A watch begins."""
        self._watches += 1
        if self._watches == 1 and (limit := sys.getrecursionlimit()) <= MOST:
            self._before, self._set = limit, limit + limit // FRAMES + BESIDE
            sys.setrecursionlimit(self._set)

    def give_back(self) -> None:
        """A watch has ended. A limit that the program has set since then is kept."""
        self._watches -= 1
        if not self._watches and self._set and sys.getrecursionlimit() == self._set:
            sys.setrecursionlimit(self._before)
        self._set = self._set if self._watches else 0


CALL_DEPTH = CallDepth()
