"""When a step is complete at one node of the tree: whose partial aggregates are waited for, and for how long.

The sources of a node are itself and its children. A partial of a step also shows that its source is past all earlier
steps. A step is complete when every source is past it. A node waits at most `patience` seconds for a source
(`START_PATIENCE` for one that has sent nothing yet). A source that is later is *behind*: the node does not wait for it
again until it is past everything that was passed on. What arrives for a step that was passed on is dropped. This module
has no sockets and no clock: the caller gives the times.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from stabwatch.distributed.layout import MergeLayout, Partial

START_PATIENCE = 10.0
"""Seconds for which the first step of a node waits for ranks that have yet to connect."""
OWN = "own"
"""The source that is this rank."""
MOST_PENDING = 4096
MOST_PENDING_BYTES = 64 << 20
"""Steps that wait at one node; beyond that the oldest is passed on as it is."""


@dataclass
class _Source:
    past: int = -1
    behind: bool = False
    heard: bool = False


@dataclass
class Pending:
    """A step that is under way. extra: what the owner gave with its own partial."""

    partial: Partial | None
    since: float
    bytes: int = 0
    own: bool = False
    extra: Any = None


class Merger:
    """The steps of one node.

    root: the own step is always waited for, as its owner writes the record.
    """

    def __init__(self, layout: MergeLayout, root: bool, patience: float) -> None:
        self._layout = layout
        self._root = root
        self._patience = patience
        self._sources: dict[Hashable, _Source] = {OWN: _Source()}
        self._pending: dict[int, Pending] = {}
        self._bytes = 0
        self._passed = -1
        self.dropped = 0
        """Aggregates that came after their step was passed on."""

    def add(self, source: Hashable) -> None:
        """From now on this source is waited for."""
        self._sources.setdefault(source, _Source(past=self._passed))

    def remove(self, source: Hashable) -> None:
        """It is waited for no more."""
        self._sources.pop(source, None)

    def put(self, source: Hashable, step: int, partial: Partial | None, now: float, extra: Any = None) -> None:
        """A source is past `step`, with what it measured in it; None for nothing."""
        known = self._sources.get(source)
        if known is not None:
            known.heard = True
            known.past = max(known.past, step)
            known.behind = known.behind and step <= self._passed
        if step <= self._passed:
            self.dropped += partial is not None
            return
        entry = self._pending.setdefault(step, Pending(None, now))
        if source == OWN:
            entry.own, entry.extra = True, extra
            entry.since = now if self._root else entry.since
        if partial is not None:
            entry.partial = partial if entry.partial is None else self._layout.merge(entry.partial, partial)
            if not entry.bytes:
                entry.bytes = partial.nbytes
                self._bytes += entry.bytes

    def take(self, now: float) -> Iterable[tuple[int, Pending]]:
        """The steps that are to be passed on now, in order."""
        for step in sorted(self._pending):
            entry = self._pending[step]
            full = len(self._pending) > MOST_PENDING or self._bytes > MOST_PENDING_BYTES
            waiting = [s for s in self._sources.values() if s.past < step and not s.behind]
            if waiting and not full and (self._awaits_own(step) or now < entry.since + self._longest(waiting)):
                return
            for source in waiting:
                source.behind = not (self._root and source is self._sources[OWN])
            del self._pending[step]
            self._bytes -= entry.bytes
            self._passed = step
            yield step, entry

    def _awaits_own(self, step: int) -> bool:
        return self._root and self._sources[OWN].past < step

    def _longest(self, waiting: list[_Source]) -> float:
        return self._patience if all(s.heard for s in waiting) else max(self._patience, START_PATIENCE)

    def flush(self) -> Iterable[tuple[int, Pending]]:
        """All that is left, in order, whoever is missing."""
        for step in sorted(self._pending):
            self._passed = step
            yield step, self._pending.pop(step)

    @property
    def behind(self) -> list[Hashable]:
        """Sources that are not waited for."""
        return [name for name, source in self._sources.items() if source.behind]

    @property
    def waits(self) -> bool:
        """Steps are under way."""
        return bool(self._pending)
